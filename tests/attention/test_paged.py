"""Paged keys and values: any page size, layout and batch, and garbage wherever nobody looks."""

from typing import NamedTuple

import pytest
import torch

from swaa.attention import swaa_attention
from swaa.attention.api import make_call
from tests.attention.judge import DEVICE

decode = pytest.importorskip("swaa.attention.triton.decode")

DTYPE = torch.float16


class Cache(NamedTuple):
    """Pages of several sequences, in a random order, and the same keys side by side."""

    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor
    lens: torch.Tensor


def make_cache(
    lengths: list[int],
    *,
    page: int = 16,
    kv_heads: int = 2,
    head_dim: int = 64,
    layout: str = "plain",
    spare_pages: int = 2,
) -> Cache:
    """Fill pages with random keys; what no sequence owns is NaN, unused table entries are stale."""
    width = max(-(-length // page) for length in lengths) + spare_pages
    used = sum(-(-length // page) for length in lengths)
    count = used + 3
    if layout == "vllm":  # [pages, kv_heads, page, K | V]
        pool = torch.full((count, kv_heads, page, 2 * head_dim), float("nan"))
        k, v = (x.transpose(1, 2) for x in pool.to(DEVICE, DTYPE).split(head_dim, dim=3))
    else:
        pool = torch.full((2, count, page, kv_heads, head_dim), float("nan"))
        k, v = pool.to(DEVICE, DTYPE)
    order = torch.randperm(used).tolist()
    table = torch.full((len(lengths), width), -1, dtype=torch.int32)
    table[:, -1] = count - 1  # a stale entry: a page of NaN
    for n, length in enumerate(lengths):
        for i in range(-(-length // page)):
            table[n, i] = order.pop()
            rows = min(page, length - i * page)
            for x in (k, v):
                x[table[n, i], :rows] = torch.randn(rows, kv_heads, head_dim).to(DEVICE, DTYPE)
    return Cache(k, v, table.to(DEVICE), torch.tensor(lengths, dtype=torch.int32, device=DEVICE))


def offsets(rows: list[int]) -> torch.Tensor:
    ends = torch.tensor([0, *rows]).cumsum(0)
    return ends.to(DEVICE, torch.int32)


def assert_equals_reference(q, cache: Cache, **arguments) -> None:
    arguments |= {"block_table": cache.table, "kv_lens": cache.lens}
    call = make_call(q, cache.k, cache.v, **arguments)
    assert decode.refusal(call) is None
    actual = decode.attend(call)
    q, k, v = (x.float() for x in (q, cache.k, cache.v))
    expected = swaa_attention(q, k, v, backend="reference", **arguments)
    torch.testing.assert_close(actual.output.float(), expected.output, atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(actual.lse, expected.lse, atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize("layout", ["plain", "vllm"])
@pytest.mark.parametrize("page", [16, 48, 128])
@pytest.mark.parametrize("rows", [1, 5])
def test_decode_follows_the_block_table(layout, page, rows):
    cache = make_cache([200, 33, 5], page=page, layout=layout)
    q = torch.randn(3, rows, 8, 64).to(DEVICE, DTYPE)
    assert_equals_reference(q, cache, window=24, sink_tokens=10)
    assert_equals_reference(q, cache, window=None)


def test_rows_turn_full_at_each_sequences_own_position():
    cache = make_cache([200, 90, 60])
    q = torch.randn(3, 4, 4, 64).to(DEVICE, DTYPE)
    full_from = torch.tensor([198, 1000, 0], dtype=torch.int32, device=DEVICE)
    full_until = torch.tensor([199, 1000, 59], dtype=torch.int32, device=DEVICE)
    assert_equals_reference(
        q, cache, window=24, sink_tokens=3, full_from=full_from, full_until=full_until
    )


@pytest.mark.parametrize("layout", ["plain", "vllm"])
def test_a_mixed_batch_of_decode_rows_and_prompt_chunks(layout):
    rows = [1, 40, 1, 0, 7, 3]
    cache = make_cache([150, 120, 17, 64, 7, 80], layout=layout)
    q = torch.randn(1, sum(rows), 8, 64).to(DEVICE, DTYPE)
    full_from = torch.tensor([140, 110, 500, 0, 5, 500], dtype=torch.int32, device=DEVICE)
    assert_equals_reference(
        q, cache, window=20, sink_tokens=6, cu_seqlens_q=offsets(rows), full_from=full_from
    )


@pytest.mark.parametrize("rows", [[1] * 11, [0] * 5 + [2] * 3 + [0] * 4, [3]], ids=str)
def test_a_packed_batch_of_decode_rows_only(rows):
    cache = make_cache([20 + 7 * n for n in range(len(rows))], kv_heads=1)
    q = torch.randn(1, sum(rows), 4, 64).to(DEVICE, DTYPE)
    assert_equals_reference(q, cache, window=20, sink_tokens=6, cu_seqlens_q=offsets(rows))


def test_a_long_prompt_chunk_behind_a_paged_cache():
    rows = [150, 70]
    cache = make_cache([300, 70], kv_heads=1)
    q = torch.randn(1, sum(rows), 4, 64).to(DEVICE, DTYPE)
    assert_equals_reference(q, cache, window=33, sink_tokens=20, cu_seqlens_q=offsets(rows))


def test_left_per_packed_row():
    rows = [3, 2]
    cache = make_cache([100, 90])
    q = torch.randn(1, 5, 4, 64).to(DEVICE, DTYPE)
    left = torch.tensor([[0, 90, 99, 40, 88]], dtype=torch.int32, device=DEVICE)
    assert_equals_reference(
        q, cache, window=4, sink_tokens=2, cu_seqlens_q=offsets(rows), left=left
    )


def test_freed_pages_in_the_gap_are_not_read():
    """A cache that slides frees what lies between sinks and window: its table entries go stale."""
    cache = make_cache([400, 350], page=16)
    q = torch.randn(2, 1, 4, 64).to(DEVICE, DTYPE)
    arguments = {"window": 40, "sink_tokens": 10, "kv_lens": cache.lens}

    def output(table):
        call = make_call(q, cache.k, cache.v, block_table=table, **arguments)
        return decode.attend(call).output

    before = output(cache.table)
    stale = cache.table.clone()
    for n, length in enumerate([400, 350]):
        first = (length - 40) // 16
        stale[n, 1:first] = cache.table[0, -1]  # the page of NaN
        cache.k[cache.table[n, 1:first].long()] = float("nan")
    assert torch.equal(output(stale), before)
    assert before.isfinite().all()


def test_sequences_without_keys_or_rows_are_zero():
    cache = make_cache([0, 30])
    q = torch.randn(2, 1, 4, 64).to(DEVICE, DTYPE)
    call = make_call(q, cache.k, cache.v, window=8, block_table=cache.table, kv_lens=cache.lens)
    result = decode.attend(call)
    assert (result.output[0] == 0).all()
    assert result.lse[0].isinf().all()
    assert result.output[1].isfinite().all()


@pytest.mark.parametrize("paged", [True, False], ids=["paged", "packed"])
@pytest.mark.parametrize(
    ("rows", "lengths", "spare"),
    [
        ([1, 1], [40, 37], 6),
        ([1, 1], [40, 37], 1),
        ([1, 0, 0], [700, 0, 0], 2),  # a padded batch of a CUDA graph; keys in several splits
        ([3, 6], [9, 300], 5),
        ([0], [20], 3),
        ([], [], 2),
    ],
    ids=str,
)
def test_rows_behind_the_last_sequence_are_zero(rows, lengths, spare, paged):
    count = sum(rows)
    q = torch.randn(1, count + spare, 4, 32).to(DEVICE, DTYPE)
    if paged:
        cache = make_cache(lengths or [0], head_dim=32)
        k, v = cache.k, cache.v
        keys = {"block_table": cache.table[: len(rows)], "kv_lens": cache.lens[: len(rows)]}
    else:
        k, v = torch.randn(2, 1, sum(lengths), 2, 32).to(DEVICE, DTYPE)
        keys = {"cu_seqlens_k": offsets(lengths)}
    arguments = {"window": 24, "sink_tokens": 4, "cu_seqlens_q": offsets(rows), **keys}
    result = decode.attend(make_call(q, k, v, **arguments))
    assert (result.output[0, count:] == 0).all()
    assert (result.lse[0, :, count:] == float("-inf")).all()
    if count:
        alone = decode.attend(make_call(q[:, :count], k, v, **arguments))
        torch.testing.assert_close(result.output[:, :count], alone.output, atol=4e-3, rtol=4e-3)


def test_bits_do_not_follow_the_batch_where_vllms_switch_says_so(monkeypatch):
    keys = 300 if DEVICE == "cpu" else 20_000  # so many that several splits serve them on a GPU
    cache = make_cache([keys, 40, 25], head_dim=32)
    q = torch.randn(1, 30, 4, 32).to(DEVICE, DTYPE)

    def rows_of_the_first(rows):
        """Two rows of the first sequence, with so many rows of each sequence in the batch."""
        count = len(rows)
        keys = {"block_table": cache.table[:count], "kv_lens": cache.lens[:count]}
        arguments = {"window": 24, "sink_tokens": 4, "full_from": cache.lens[:count] - 1, **keys}
        ends = offsets(rows)
        call = make_call(q[:, : sum(rows)], cache.k, cache.v, cu_seqlens_q=ends, **arguments)
        return decode.attend(call).output[:, :2], decode.plan_tiles(call)

    batches = ([2], [2, 1, 1], [2, 22, 6])
    assert len({rows_of_the_first(rows)[1].splits for rows in batches}) > 1
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    alone, plan = rows_of_the_first([2])
    for rows in batches:
        beside, other = rows_of_the_first(rows)
        assert torch.equal(beside, alone)
        assert (other.splits, other.block_m) == (plan.splits, plan.block_m)
