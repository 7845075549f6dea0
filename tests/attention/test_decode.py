"""Decode kernel: exact mask and fp64 values; interpreted without a GPU, compiled with one."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from swaa.attention import swaa_attention
from swaa.attention.api import make_call
from swaa.testing import SHAPES, Case, assert_close_to_oracle, assert_sees_the_rule, make_inputs
from tests.attention.judge import DEVICE, GPU, HALF_DTYPES

decode = pytest.importorskip("swaa.attention.triton.decode")

LONG = Case(queries=1, keys=3000, window=2048, sink_tokens=100, heads=16, kv_heads=8)
if not GPU:  # minutes in the interpreter; as many splits
    LONG = replace(LONG, keys=1100, window=700, heads=2, kv_heads=1, head_dim=256)
CASES = (
    LONG,
    Case(queries=16, keys=70, window=1, sink_tokens=0, heads=4, kv_heads=1),
    Case(queries=3, keys=200, window=40, sink_tokens=60, heads=7, kv_heads=1, head_dim=80),
    Case(queries=4, keys=300, window=20, sink_tokens=130, starts=(0, 70), head_dim=96),
    Case(queries=5, keys=100, window=None, heads=6, kv_heads=2, head_dim=256),
    Case(queries=8, keys=90, window=7, sink_tokens=2, full_from=84, full_until=88),
    Case(queries=2, keys=600, window=500, sink_tokens=9, heads=3, kv_heads=1),
    Case(queries=4, keys=4, window=2, sink_tokens=1),
    Case(queries=2, keys=50, window=8, sink_tokens=3, starts=(0, 49, 48)),
)
FEW_ROWS = [case for case in SHAPES if case.queries <= 8]


def attend(q, k, v, **arguments: Any):
    call = make_call(q, k, v, **arguments)
    assert decode.refusal(call) is None
    return decode.attend(call)


def assert_equals_reference(q, k, v, **arguments: Any) -> None:
    actual = attend(q, k, v, **arguments)
    expected = swaa_attention(q, k, v, backend="reference", **arguments)
    torch.testing.assert_close(actual.output, expected.output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.lse, expected.lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_rows_see_exactly_the_keys_of_the_rule(case):
    """Those of the table of shapes: see test_exact_mask.py."""
    assert_sees_the_rule(case, backend="triton", device=DEVICE)


@pytest.mark.parametrize("dtype", [*HALF_DTYPES, torch.float32], ids=str)
@pytest.mark.parametrize("case", [*FEW_ROWS, *CASES], ids=lambda case: case.id)
def test_output_and_lse_are_as_exact_as_eager(case, dtype):
    inputs = make_inputs(case, dtype=dtype, device=DEVICE)
    arguments = case.arguments(DEVICE)
    actual = attend(*inputs, **arguments)
    oracle = swaa_attention(*(x.double() for x in inputs), backend="reference", **arguments)
    eager = swaa_attention(*inputs, backend="reference", **arguments)
    assert_close_to_oracle(actual.output, oracle.output, eager.output)
    empty = oracle.lse.isinf()
    assert torch.equal(actual.lse.isinf(), empty)
    lse = [x.lse.masked_fill(empty, 0.0) for x in (actual, oracle, eager)]
    assert_close_to_oracle(*lse, magnitude=10.0, name="lse")


def test_positions_per_sequence_and_garbage_behind_the_length():
    case = Case(queries=2, keys=120, starts=(0, 0, 0), heads=4, kv_heads=2)
    q, k, v = make_inputs(case, dtype=torch.float32, device=DEVICE)
    lens = torch.tensor([120, 33, 2], dtype=torch.int32, device=DEVICE)
    for n, length in enumerate(lens.tolist()):
        k[n, length:] = float("nan")
        v[n, length:] = float("inf")
    arguments = {
        "window": 10,
        "sink_tokens": 3,
        "kv_lens": lens,
        "full_from": torch.tensor([119, 100, 0], dtype=torch.int32, device=DEVICE),
        "full_until": torch.tensor([200, 200, 1], dtype=torch.int32, device=DEVICE),
    }
    assert_equals_reference(q, k, v, **arguments)


def test_left_per_row_overrides_the_window():
    case = Case(queries=6, keys=140, starts=(0, 0), heads=4, kv_heads=2)
    q, k, v = make_inputs(case, dtype=torch.float32, device=DEVICE)
    left = torch.tensor([[0, 130, 70, 138, 64, 200], [134, 0, 3, 128, 127, 65]], device=DEVICE)
    for rows in (left, left[:1]):
        assert_equals_reference(q, k, v, window=5, sink_tokens=2, left=rows.int())


def test_packed_sequences_with_packed_keys():
    rows, lengths = [3, 1, 0, 4], [90, 40, 12, 4]
    q = torch.randn(1, sum(rows), 4, 64, device=DEVICE)
    k, v = torch.randn(2, 1, sum(lengths), 2, 64, device=DEVICE).unbind()
    ends_q, ends_k = (torch.tensor([0, *n], device=DEVICE).cumsum(0).int() for n in (rows, lengths))
    arguments = {"window": 20, "sink_tokens": 5, "cu_seqlens_q": ends_q, "cu_seqlens_k": ends_k}
    arguments["full_from"] = torch.tensor([89, 0, 0, 99], dtype=torch.int32, device=DEVICE)
    assert_equals_reference(q, k, v, **arguments)


def test_invisible_keys_are_never_loaded():
    """NaN in the gap between sinks and window, and in a freed prefix, stays out of the output."""
    case = Case(queries=2, keys=700, window=50, sink_tokens=9, heads=4, kv_heads=2)
    q, k, v = make_inputs(case, dtype=torch.float16, device=DEVICE)
    clean = attend(q, k, v, **case.arguments()).output
    for x in (k, v):
        x[:, 9 : 700 - 51] = float("nan")
    assert torch.equal(attend(q, k, v, **case.arguments()).output, clean)


def test_a_call_is_cut_by_shapes_alone():
    case = Case(queries=1, keys=4096, window=None, starts=(0, 0), heads=8, kv_heads=2)
    q, k, v = make_inputs(case, dtype=torch.float16, device=DEVICE)
    plans = set()
    for lengths in ([4096, 1], [5, 900]):
        lens = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
        plans.add(decode.plan_tiles(make_call(q, k, v, window=None, kv_lens=lens)))
    assert len(plans) == 1
    assert plans.pop().splits > 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "float64"),
        ({"head_dim": 8}, "head_dim is 8"),
        ({"grad": True}, "no backward"),
        ({"strided": True}, "side by side"),
    ],
    ids=["dtype", "head_dim", "grad", "strided"],
)
def test_what_it_cannot_serve_is_refused_with_the_reason(change, reason):
    shape = (1, 1, 2, change.get("head_dim", 64))
    q, k, v = (torch.randn(shape, device=DEVICE).to(change.get("dtype", torch.float16)),) * 3
    if change.get("strided"):
        q = q.transpose(2, 3).contiguous().transpose(2, 3)
    q.requires_grad_(change.get("grad", False))
    assert reason in decode.refusal(make_call(q, k, v, window=4))


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")
def test_a_captured_graph_stays_exact_while_the_cache_grows():
    case = Case(queries=1, keys=5000, starts=(0, 0), heads=8, kv_heads=2, head_dim=128)
    q, k, v = make_inputs(case, dtype=torch.bfloat16, device="cuda")
    lens = torch.tensor([17, 3000], dtype=torch.int32, device="cuda")
    full_from = torch.tensor([4000, 3500], dtype=torch.int32, device="cuda")
    arguments = {"window": 300, "sink_tokens": 20, "kv_lens": lens, "full_from": full_from}
    attend(q, k, v, **arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend(q, k, v, **arguments)
    for lengths in ([1, 1], [300, 3499], [3999, 3501], [5000, 4999]):
        lens.copy_(torch.tensor(lengths, dtype=torch.int32))
        graph.replay()
        direct = attend(q, k, v, **arguments)
        assert torch.equal(captured.output, direct.output)
        assert torch.equal(captured.lse, direct.lse)
        expected = swaa_attention(q, k, v, backend="reference", **arguments)
        torch.testing.assert_close(captured.output, expected.output, atol=2e-2, rtol=2e-2)
