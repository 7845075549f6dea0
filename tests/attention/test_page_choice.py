"""The kernel that finds the best pages, against a stable sort: scores of many kinds."""

import pytest
import torch

from swaa.attention.api import make_call
from swaa.attention.pages import PAGE
from tests.attention.judge import DEVICE

pages = pytest.importorskip("swaa.attention.triton.pages")

FIRST, LAST = 1, 128
"""Pages of the sinks at the start and of the window at the end, which are not chosen."""


def scores_of(kind, pages_there):
    chance = torch.Generator().manual_seed(len(kind) * pages_there)
    scores = torch.randn(1, 2, pages_there, generator=chance)
    if kind == "ties":
        scores = (2 * scores).round()
    elif kind == "equal":
        scores = scores * 0 - 1.5
    elif kind == "zeros":
        scores = torch.where(scores > 0, 0.0, -0.0)
    elif kind == "outliers":
        scores[..., pages_there // 2] = float("inf")
        scores[..., pages_there // 3] = -3e38
    elif kind == "together":  # the best in one stretch, so that few groups hold them
        scores[..., 40:140] += 30
    elif kind == "apart":  # the best one step of the groups from each other
        scores[..., ::512] += 30
    return scores.to(DEVICE)


def sorted_pages(scores, first, end, most):
    """The same by a sort; -0 is below 0, as in the kernel."""
    bits = scores.view(torch.int32).long()
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    order[..., :first], order[..., end:] = -(2**40), -(2**40)
    return order.sort(stable=True, descending=True, dim=-1).indices[..., :most].sort(-1).values


@pytest.mark.parametrize(
    "kind", ["random", "ties", "equal", "zeros", "outliers", "together", "apart"]
)
@pytest.mark.parametrize(("pages_there", "most"), [(2048, 64), (2048, 3), (1000, 48), (300, 150)])
def test_the_best_pages(kind, pages_there, most):
    q = torch.zeros(1, 1, 4, 16, device=DEVICE)
    k = torch.zeros(1, 1, 2, 16, device=DEVICE).expand(1, pages_there * PAGE, 2, 16)
    call = make_call(
        q, k, k, window=LAST * PAGE, sink_tokens=FIRST * PAGE, full_from=0, decode_keys=most * PAGE
    )
    scores = scores_of(kind, pages_there)
    found = torch.full((1, 2, most), -1, device=DEVICE, dtype=torch.int32)
    arguments = pages._arguments(call, pages_there)
    pages.best_pages(scores, found, 0, 1, arguments, overlap=False)
    assert torch.equal(found.long(), sorted_pages(scores, FIRST, pages_there - LAST, most))
