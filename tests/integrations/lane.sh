#!/usr/bin/env bash
# Runs the tests of the Transformers integration under the oldest and the newest version that
# pyproject.toml allows. Each lies in a venv of its own, kept between runs, in which all other
# packages are those of VENV (default .venv). LANES: folder of these venvs; arguments go to pytest,
# and without any a version that VENV has is left out: `make test` runs the same tests with it.
# constraints.txt names the newest one, so that until the next one appears the oldest remains.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv=$(realpath "${VENV:-.venv}")
lanes=${LANES:-$venv}
range=$(sed -n 's/^dependencies = .*"\(transformers>=[^"]*\)".*/\1/p' pyproject.toml)
oldest=${range#transformers>=}
oldest=${oldest%%,*}
base=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
export OMP_NUM_THREADS=1

version_of() { "$1" -c 'import transformers; print(transformers.__version__)'; }

run() { # lane, what to install, arguments of pytest
  local python=$lanes/transformers-$1/bin/python
  if [ ! -e "$python" ]; then
    "$venv/bin/python" -m venv --without-pip "$lanes/transformers-$1"
    # By addsitedir, which also follows the links of editable packages.
    echo "import site; site.addsitedir('$base')" \
      > "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
  fi
  "$venv/bin/python" -m pip --python "$python" install --quiet --disable-pip-version-check \
    --upgrade "$2"
  local version
  version=$(version_of "$python")
  if [ $# -eq 2 ] && [ "$version" = "$(version_of "$venv/bin/python")" ]; then
    echo "== Transformers $version, $1: make test runs these tests with it"
    return
  fi
  [ $# -gt 2 ] || set -- "$@" tests/integrations tests/test_generation.py
  echo "== Transformers $version, $1"
  "$python" -m pytest -n 2 --dist worksteal "${@:3}"
}

run oldest "transformers==$oldest" "$@"
run newest "$range" "$@"
