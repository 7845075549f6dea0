"""NVIDIA's compute-sanitizer finds no fault in any kernel."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and shutil.which("compute-sanitizer")),
        reason="needs an NVIDIA GPU and compute-sanitizer",
    ),
]
STATE_BYTES = 8
"""A byte for each warp that waits for work, at the end of a specialised program's shared memory.

Triton writes there which part the warp is to run. Where a kernel has mbarriers, racecheck takes
those bytes for racing, whatever the kernel does: three empty parts that pass a token around are
enough (seen with Triton 3.6 and compute-sanitizer 2025.3.1).
"""
RESERVED = 1024
"""Bytes of shared memory before a program's own, which CUDA keeps."""
HAZARD = re.compile(
    r"hazard detected at __shared__ 0x([0-9a-f]+).*\n"
    r".*(?:Read|Write) Thread .* at (\w+)\+.*\n.*(?:Read|Write) Thread .* at (\w+)\+"
)


def sanitized(tool, *options):
    """What a tool prints of one small case of each kernel; whether it found nothing."""
    command = ["compute-sanitizer", "--tool", tool, *options, "--error-exitcode", "3"]
    script = [sys.executable, "-m", "tests.attention.sanitize_kernels"]
    ran = subprocess.run([*command, *script], capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 3), ran.stderr[-2000:]
    return ran.stdout, ran.returncode == 0


@pytest.mark.parametrize("tool", ["memcheck", "synccheck"])
def test_no_fault(tool):
    said, clean = sanitized(tool)
    assert clean, said[:3000]  # the first line names the fault


def test_no_race():
    said, clean = sanitized("racecheck", "--racecheck-report", "hazard", "--print-limit", "10000")
    found = HAZARD.findall(said)
    assert clean or found, said[-3000:]
    assert len(found) == said.count("hazard detected"), "a hazard that this test cannot read"
    printed = next(line for line in said.splitlines() if line.startswith("["))
    ends = [RESERVED + size for size in json.loads(printed)]
    for address, *kernels in found:
        assert kernels == ["hopper_kernel"] * 2, said[-3000:]
        assert any(0 < end - int(address, 16) <= STATE_BYTES for end in ends), address
