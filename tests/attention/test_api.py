"""What swaa_attention refuses, and calls at the edges of what it takes."""

import pytest
import torch

from swaa import swaa_attention
from swaa.testing import keys_seen


def tensors(queries=10, keys=10, heads=2, kv_heads=2, batch=1):
    shapes = ((batch, queries, heads, 16), (batch, keys, kv_heads, 16), (batch, keys, kv_heads, 16))
    return [torch.randn(shape) for shape in shapes]


def offsets(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"window": 0}, ValueError, "window is 0"),
        ({"window": 2**70}, ValueError, "window is above 1,073,741,824"),
        ({"sink_tokens": 2**30 + 1}, ValueError, "sink_tokens is above 1,073,741,824"),
        ({"window": 8.5}, TypeError, "window is 8.5"),
        ({"window": True}, TypeError, "window is True"),
        ({"sink_tokens": -1}, ValueError, "sink_tokens is -1"),
        ({"sink_tokens": 1.5}, TypeError, "sink_tokens is 1.5"),
        ({"left": torch.zeros(3, 10, dtype=torch.int32)}, ValueError, "left has shape"),
        ({"kv_lens": offsets(11)}, ValueError, "kv_lens holds 11"),
        ({"kv_lens": offsets(5, 5)}, ValueError, "kv_lens has shape"),
        ({"cu_seqlens_q": offsets(0, 10)}, ValueError, "need both"),
        (
            {"cu_seqlens_q": offsets(0, 5, 10), "cu_seqlens_k": offsets(0, 10)},
            ValueError,
            "both are",
        ),
        (
            {"cu_seqlens_q": offsets(0, 12), "cu_seqlens_k": offsets(0, 10)},
            ValueError,
            "cu_seqlens_q is",
        ),
        (
            {"cu_seqlens_q": offsets(0, 10), "cu_seqlens_k": offsets(4, 2)},
            ValueError,
            "cu_seqlens_k is",
        ),
        ({"block_table": offsets(0)[None]}, ValueError, "needs kv_lens"),
        ({"backend": "fast"}, ValueError, "no attention backend 'fast'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        swaa_attention(*tensors(), **{"window": 4, **options})


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("numbers", [(2**30, 0), (4, 2**30), (2**30, 2**30)], ids=str)
def test_the_largest_numbers_are_full_attention(backend, numbers):
    q, k, v = tensors(batch=2)
    start = {"kv_start": offsets(3, 0), "backend": backend}
    full = swaa_attention(q, k, v, window=None, **start).output
    window, sinks = numbers
    output = swaa_attention(q, k, v, window=window, sink_tokens=sinks, **start).output
    torch.testing.assert_close(output, full)


def test_more_queries_than_keys_need_a_start():
    with pytest.raises(ValueError, match="q_start"):
        swaa_attention(*tensors(queries=12), window=4)


@pytest.mark.parametrize(
    ("q", "k", "match"),
    [
        (torch.randn(1, 4, 2), torch.randn(1, 4, 2, 16), "expected"),
        (torch.randn(1, 4, 3, 16), torch.randn(1, 4, 2, 16), "not a multiple"),
        (torch.randn(1, 4, 2, 8), torch.randn(1, 4, 2, 16), "head_dim"),
        (torch.randn(2, 4, 2, 16), torch.randn(1, 4, 2, 16), "batch"),
        (torch.randn(1, 4, 2, 16).half(), torch.randn(1, 4, 2, 16), "must agree"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(q, k, match):
    with pytest.raises(ValueError, match=match):
        swaa_attention(q, k, k, window=4)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_tokens_behind_the_last_packed_sequence_are_zero(backend):
    q, k, v = tensors(queries=14, keys=14)
    packed = {"cu_seqlens_q": offsets(0, 4, 10), "cu_seqlens_k": offsets(0, 4, 10)}
    output = swaa_attention(q, k, v, window=3, backend=backend, **packed).output
    assert output.shape == q.shape
    assert not output[:, 10:].any()
    alone = swaa_attention(q[:, 4:10], k[:, 4:10], v[:, 4:10], window=3, backend=backend).output
    torch.testing.assert_close(output[:, 4:10], alone)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_no_queries_and_no_keys(backend):
    q, k, v = tensors(queries=0)
    output = swaa_attention(q, k, v, window=4, backend=backend).output
    assert output.shape == q.shape
    q, k, v = tensors(queries=3, keys=0)
    output = swaa_attention(q, k, v, window=4, q_start=0, backend=backend).output
    assert not output.any()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda q, k, v: torch.full_like(q, float("nan")), "not finite"),
        (lambda q, k, v: 3 * swaa_attention(q, k, v, window=4).output, "sum to one"),
    ],
)
def test_keys_seen_notices_outputs_that_are_no_average(wrong, match):
    with pytest.raises(AssertionError, match=match):
        keys_seen(wrong, batch=1, queries=8, keys=8)
