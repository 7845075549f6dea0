#!/usr/bin/env bash
# Builds a venv with the stock wheel of SGLang on the CPU build of PyTorch and runs tests/sglang in
# it. Kept between runs. PYTHON (3.11 or later), SGLANG_VENV (default .venv/sglang), ONLY_INSTALL=1
# builds the venv and ends; arguments go to pytest. The wheel asks for packages that need CUDA; those
# that a model on the CPU imports are stood in for by tests/sglang/stand_ins, whose names raise when
# they are called.
# The build needs PyTorch's CPU wheels: where pip does not find them, name their index in
# PIP_EXTRA_INDEX_URL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv=${SGLANG_VENV:-.venv/sglang}
version=0.5.23
bin=$venv/bin
pip() { "$bin/python" -m pip "$1" --quiet --disable-pip-version-check "${@:2}"; }
if [ ! -e "$venv/.sglang-$version" ]; then
  echo "== installing SGLang $version for the CPU into $venv (minutes)"
  "${PYTHON:-python3}" -m venv --clear "$venv"
  pip install torch==2.13.0
  pip install transformers==5.19.0 numpy psutil requests aiohttp fastapi uvicorn uvloop pyzmq msgspec \
    orjson pybase64 setproctitle python-multipart partial-json-parser prometheus-client pydantic regex \
    tqdm xxhash zstandard interegular pillow packaging openai==2.8.0 openai-harmony==0.0.4 tiktoken \
    ninja watchfiles ipython dill distro einops nvidia-ml-py scipy sentencepiece loguru \
    'pytest>=9' 'pytest-timeout>=2.4' 'pytest-xdist>=3.8'
  # --no-deps, because these ask for builds of PyTorch for CUDA, or for what a CPU does not use.
  pip install --no-deps "sglang==$version" triton==3.6.0 apache-tvm-ffi==0.1.11 xgrammar==0.2.7 \
    compressed-tensors==0.18.0 gguf==0.19.0 llguidance==1.7.6 soundfile cffi pycparser jsonschema \
    jsonschema-specifications referencing rpds-py numba==0.65.1 llvmlite
  touch "$venv/.sglang-$version"
fi
[ -z "${ONLY_INSTALL:-}" ] || exit 0
pip install --no-deps --editable .
export OMP_NUM_THREADS=1 PYTHONPATH
PYTHONPATH=$(realpath tests/sglang/stand_ins):$PWD${PYTHONPATH:+:$PYTHONPATH}
echo "== tests of the SGLang plugin"
"$bin/python" -m pytest -n 2 --dist loadgroup "${@:-tests/sglang}"
