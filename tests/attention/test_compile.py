"""Kernels are compiled for GPUs that nobody here has, and what they take fits there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="compiles Triton kernels")

from tests.attention.compile_kernels import TARGETS

SCRIPT = Path(__file__).with_name("compile_kernels.py")
PORTABLE = {"prefill_kernel", "dq_kernel", "dkdv_kernel", "sinks_kernel"}
PORTABLE |= {"selected_kernel", "selected_dq_kernel", "selected_dkdv_kernel"}
PORTABLE |= {"_decode", "_merge", "_gather"}
PORTABLE |= {"summarise_kernel", "score_kernel", "choose_kernel"}
HOPPER = {"hopper_kernel", "plan_kernel"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rtx3090", "h100", "b200", "mi300x", "rx7900"])
def test_every_kernel_compiles_and_fits(name):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, SCRIPT, name], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    compiled = [json.loads(line) for line in ran.stdout.splitlines()]
    expected = PORTABLE | (HOPPER if name == "h100" else set())
    assert {one["kernel"] for one in compiled} == expected
    _, _, shared = TARGETS[name]
    assert not [one for one in compiled if one["shared"] > shared]
