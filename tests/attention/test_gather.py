"""Keys out of pages, in any order, whatever the strides of the cache."""

import pytest
import torch

from tests.attention.judge import DEVICE

gather = pytest.importorskip("swaa.attention.triton.gather").gather


@pytest.mark.parametrize("keys", [1, 16, 37])
@pytest.mark.parametrize(
    ("heads", "page", "width", "heads_first"),
    [(2, 16, 64, True), (3, 8, 160, False), (1, 32, 256, True)],
)
def test_rows_are_those_of_the_slots(heads, page, width, heads_first, keys):
    cache = torch.randn(7, page, heads, width, device=DEVICE).transpose(1, 2)
    cache = cache.contiguous() if heads_first else cache
    slots = torch.randint(7 * page, (keys,), device=DEVICE)
    expected = cache.transpose(1, 2)[slots // page, slots % page]
    assert torch.equal(gather(cache, slots), expected)
    if DEVICE == "cpu" or torch.cuda.get_device_capability() >= (8, 9):
        stored = cache.to(torch.float8_e4m3fn)
        expected = stored.transpose(1, 2).half()[slots // page, slots % page]
        assert torch.equal(gather(stored, slots, torch.float16), expected)
