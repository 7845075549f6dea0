#!/usr/bin/env bash
# Runs a command on a GPU machine without a network, with SGLang importable and swaa as its plugin.
#
#   tests/sglang/on_gpu.sh PARTS COMMAND...
#
# PARTS: folder of part00, part01, ...: a tar archive in xz of SGLang's Python, a stand-in for its
# kernel package, and a folder `wheels` of other packages for this machine's Python. It is unpacked
# once, into SGLANG_SITE (default /tmp/swaa-sglang).
set -euo pipefail
parts=$1; shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
site=${SGLANG_SITE:-/tmp/swaa-sglang}
if [ ! -e "$site/.ready" ]; then
  mkdir -p "$site"
  cat "$parts"/part* | tar xJ -C "$site"
  python3 -m pip install --quiet --no-index --no-deps --target "$site" "$site"/wheels/*.whl
  mkdir -p "$site/swaa-0.dist-info"  # by which SGLang finds the plugin
  printf 'Metadata-Version: 2.1\nName: swaa\nVersion: 0\n' > "$site/swaa-0.dist-info/METADATA"
  printf '[sglang.srt.plugins]\nswaa = swaa.integrations.sglang.plugin:register\n' \
    > "$site/swaa-0.dist-info/entry_points.txt"
  touch "$site/.ready"
fi
export PYTHONPATH=$PWD/src:$PWD:$site${PYTHONPATH:+:$PYTHONPATH}
# The radix tree in Rust is built for the PyTorch that SGLang pins; others end in a panic.
export SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND=${SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND:-python}
# SGLang's Triton kernels would otherwise round float32 to TF32, which no test of tokens can allow.
export TRITON_F32_DEFAULT=${TRITON_F32_DEFAULT:-ieee}
export SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=4
exec "$@"
