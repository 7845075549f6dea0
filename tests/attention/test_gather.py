"""Keys out of pages, in any order, whatever the strides of the cache."""

import os
import subprocess
import sys

import pytest
import torch

CHECK = """
import torch
from swaa.attention.triton.gather import gather
for heads, page, width, heads_first in ((2, 16, 64, True), (3, 8, 160, False), (1, 32, 256, True)):
    cache = torch.randn(7, page, heads, width, device={device!r}).transpose(1, 2)
    cache = cache.contiguous() if heads_first else cache
    for keys in (1, 16, 37):
        slots = torch.randint(7 * page, (keys,), device={device!r})
        expected = cache.transpose(1, 2)[slots // page, slots % page]
        assert torch.equal(gather(cache, slots), expected), (heads, page, width, keys)
        if {fp8}:
            stored = cache.to(torch.float8_e4m3fn)
            expected = stored.transpose(1, 2).half()[slots // page, slots % page]
            assert torch.equal(gather(stored, slots, torch.float16), expected), "fp8"
print("equal")
"""


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
def test_rows_are_those_of_the_slots(device):
    pytest.importorskip("triton")
    fp8 = device == "cpu" or torch.cuda.get_device_capability() >= (8, 9)
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if device == "cpu" else {})
    ran = subprocess.run(
        [sys.executable, "-c", CHECK.format(device=device, fp8=fp8)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "equal", ran.stderr[-2000:]
