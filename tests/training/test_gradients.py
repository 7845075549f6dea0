"""Gradients through a training batch's mask: sliding, tail, answer; several turns, packed."""

import itertools

import pytest
import torch

from swaa.attention import swaa_attention
from swaa.config import LayerPlan
from swaa.integrations.transformers.mask import RowInfo
from swaa.phase import Phase
from swaa.testing import assert_close_to_oracle

PLAN = LayerPlan(window=12, sink_tokens=3, full_decode=True, dense_tail=5)
TOKENS = 70


def _rows(*answers):
    rows = torch.zeros(len(answers), TOKENS, dtype=torch.bool)
    for b, spans in enumerate(answers):
        for first, end in spans:
            rows[b, first:end] = True
    return rows


CASES = {
    "several turns": (_rows([(20, 27), (50, 70)], [(33, 60)]), None),
    "packed": (_rows([(20, 27), (50, 55), (66, 70)]), (27, 3, 40)),
}


def _arguments(rows, lengths):
    info = RowInfo(
        batch=len(rows),
        queries=TOKENS,
        q_offset=0,
        starts=None,
        native_window=None,
        kv_offset=0,
        phase=Phase(rows=rows),
        device=torch.device("cpu"),
    )
    positions = None
    if lengths is not None:
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return info.arguments(PLAN, TOKENS, positions)


def _gradients(backend, dtype, rows, lengths, *, trained=None):
    """Of q, k and v, for a loss on the answer rows, or on ``trained``."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((4, 16), (2, 16), (2, 16))
    qkv = [
        torch.randn(len(rows), TOKENS, *shape, generator=generator).to(dtype).requires_grad_()
        for shape in shapes
    ]
    output = swaa_attention(*qkv, backend=backend, **_arguments(rows, lengths)).output
    weights = torch.randn(output.shape, generator=generator).to(dtype)
    counted = (rows if trained is None else trained).reshape(*output.shape[:2], 1, 1)
    (output * weights * counted).sum().backward()
    return [x.grad for x in qkv]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_within_twice_the_error_of_eager_ones(case):
    rows, lengths = CASES[case]
    oracle = _gradients("reference", torch.float64, rows, lengths)
    eager = _gradients("reference", torch.float32, rows, lengths)
    actual = _gradients("sdpa", torch.float32, rows, lengths)
    for name, *tensors in zip("qkv", actual, oracle, eager, strict=True):
        assert_close_to_oracle(*tensors, name=f"gradient of {name}")


@pytest.mark.parametrize("case", CASES)
def test_the_mask_is_mixed_and_matters(case):
    rows, lengths = CASES[case]
    left = _arguments(rows, lengths)["left"].flatten()
    offsets = [0, *torch.tensor(lengths or [TOKENS] * len(rows)).cumsum(0).tolist()]
    kinds = {"tail": 0, "answer": 0, "sliding": 0}
    for first, end in itertools.pairwise(offsets):
        for t in range(first, end):
            answer = bool(rows.flatten()[t])
            full = left[t] == 0 and t - first >= PLAN.window
            kinds["answer" if answer else "tail" if full else "sliding"] += 1
    assert min(kinds.values()) > 4
    ours = _gradients("sdpa", torch.float32, rows, lengths)
    slid = _gradients("sdpa", torch.float32, torch.zeros_like(rows), lengths, trained=rows)
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(ours, slid, strict=True))
