"""Where sequences are: the numbers of a call as kernel arguments, and how kernels read them.

A position that all sequences share is passed as an int, one per sequence as a tensor: nothing is
copied to the device and no length is read on the host. The tiles of packed sequences follow from
offsets alone: sequence ``s`` owns the tile slots from ``cu[s] // BLOCK + s`` on, at least as many
as it has tiles; slots after its last tile stay idle. Tokens after the last sequence form one more
sequence, without keys, so that their rows are written too.
"""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from swaa.attention.call import AttentionCall
from swaa.attention.mask import Position

NEVER = tl.constexpr(2**31 - 1)
"""A position that no row reaches."""
UNBOUNDED = 2**30
"""A window wider than any sequence."""

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

PLAN = tl.constexpr(16)
"""Numbers per planned tile of the Hopper prefill."""
ROWS = tl.constexpr(64)
"""Rows of one group of four computing warps in the Hopper prefill."""

LENGTHS = (
    "stride_left",
    "sequences",
    "batch",
    "queries",
    "keys",
    "q_start",
    "kv_start",
    "kv_lens",
    "full_from",
    "full_until",
    "window",
    "sink_tokens",
)
"""Arguments whose values must not make a kernel compile again."""


@functools.cache
def can_overlap(device: torch.device) -> bool:
    """Whether a kernel may be launched while the one it waits for still runs (Hopper and later)."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and torch.cuda.get_device_capability(device) >= (9, 0)


class Numbers(NamedTuple):
    """The mask and the layout of a call, without its q, k and v.

    Attributes:
        p_cu_q: int32 ``[sequences + 1]`` offsets of packed queries, or None.
        p_cu_k: as ``p_cu_q`` for keys.
        p_left: int32 ``[batch or 1, queries]``, the declared left of each row, or None.
        stride_left: elements from one batch entry of ``p_left`` to the next.
        sequences: how many sequences there are.
        queries: query slots per batch entry.
        keys: key slots per batch entry.
        q_start: position of the first row; packed: -1 when the queries are the last tokens.
        kv_start: position of the first real key.
        kv_lens: keys that exist (not read when packed).
        full_from: first position of the full rows.
        full_until: position after the full rows.
        window: keys of a sliding row.
        sink_tokens: keys at the start that every row sees.
    """

    p_cu_q: Tensor | None
    p_cu_k: Tensor | None
    p_left: Tensor | None
    stride_left: int
    sequences: int
    queries: int
    keys: int
    q_start: Position
    kv_start: Position
    kv_lens: Position
    full_from: Position
    full_until: Position
    window: int
    sink_tokens: int

    @property
    def packed(self) -> bool:
        """Whether sequences lie one after the other in a batch of one."""
        return self.p_cu_q is not None

    def query_slots(self, block: int) -> int:
        """Tile slots of ``block`` query rows, per batch entry."""
        return self._slots(self.queries, block)

    def key_slots(self, block: int) -> int:
        """Tile slots of ``block`` keys, per batch entry."""
        return self._slots(self.keys, block)

    def _slots(self, tokens: int, block: int) -> int:
        if self.packed:
            return tokens // block + self.sequences + 1
        return -(-tokens // block)


def numbers_of(call: AttentionCall) -> Numbers:
    """The numbers of a call that is not paged."""
    queries, keys = call.q.shape[1], call.k.shape[1]
    left = None if call.left is None else call.left.contiguous()
    return Numbers(
        p_cu_q=None if call.cu_seqlens_q is None else call.cu_seqlens_q.contiguous(),
        p_cu_k=None if call.cu_seqlens_k is None else call.cu_seqlens_k.contiguous(),
        p_left=left,
        stride_left=0 if left is None or left.shape[0] == 1 else left.stride(0),
        sequences=call.q.shape[0] if call.cu_seqlens_q is None else len(call.cu_seqlens_q) - 1,
        queries=queries,
        keys=keys,
        q_start=_number(call.q_start, -1),
        kv_start=_number(call.kv_start, 0),
        kv_lens=_number(call.kv_lens, keys),
        full_from=_number(call.full_from, NEVER.value),
        full_until=_number(call.full_until, NEVER.value),
        window=min(call.window or UNBOUNDED, UNBOUNDED),
        sink_tokens=min(call.sink_tokens, UNBOUNDED),
    )


def _number(value: Position | None, default: int) -> Position:
    if isinstance(value, Tensor):
        return value.contiguous()
    return default if value is None else value


@triton.jit
def of_sequence(p_number, number, n) -> tl.tensor:
    """A number of sequence ``n``: loaded where each has its own, else the one of all."""
    if p_number is not None:
        return tl.load(p_number + n).to(tl.int32)
    else:  # noqa: RET505 (a compile-time branch)
        return number


@triton.jit
def number(value, s) -> tl.tensor:
    """A number of sequence ``s``: shared by all (a scalar) or its own (read by a pointer)."""
    if value.dtype.is_ptr():
        return tl.load(value + s).to(tl.int32)
    else:  # noqa: RET505 - decided at compile time: the other branch must not be built
        return value.to(tl.int32)


@triton.jit
def tile_of_slot(p_cu, slot, sequences, BLOCK: tl.constexpr) -> tuple:
    """Packed: the sequence that owns a tile slot, and the slot's first token within it.

    The sequence is ``sequences`` for the tokens after the last sequence.
    """
    low = 0
    high = sequences
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(p_cu + middle).to(tl.int32) // BLOCK + middle <= slot:
            low = middle
        else:
            high = middle - 1
    first = tl.load(p_cu + low).to(tl.int32)
    return low, (slot - (first // BLOCK + low)) * BLOCK


@triton.jit
def span(p_cu, s, sequences, tokens) -> tuple:
    """Packed: first token and number of tokens of sequence ``s``."""
    first = tl.load(p_cu + s).to(tl.int32)
    end = tl.load(p_cu + s + 1, mask=s < sequences, other=tokens).to(tl.int32)
    return first, end - first


@triton.jit
def place(p_cu_q, p_cu_k, b, s, sequences, queries, keys, q_start, kv_lens) -> tuple:
    """First token and number of the queries, then of the keys, of ``s``; position of its row 0."""
    if p_cu_q is not None:
        q_first, q_count = span(p_cu_q, s, sequences, queries)
        k_first, k_count = span(p_cu_k, s, sequences, keys)
        position = number(q_start, tl.minimum(s, sequences - 1))
        position = tl.where(position < 0, k_count - q_count, position)
        k_seen = tl.where(s < sequences, k_count, 0)
    else:
        q_first = tl.full([], 0, tl.int32)
        k_first = tl.full([], 0, tl.int32)
        q_count = queries.to(tl.int32)
        k_seen = tl.minimum(number(kv_lens, s), keys)
        position = number(q_start, s)
    return q_first, q_count, k_first, k_seen, position


@triton.jit
def query_tile(
    slot, batch, p_cu_q, p_cu_k, sequences, queries, keys, q_start, kv_lens, BLOCK_M: tl.constexpr
) -> tuple:
    """Batch entry, sequence and first row of a query tile, then the values of :func:`place`."""
    if p_cu_q is not None:
        b = tl.full([], 0, tl.int32)
        s, row = tile_of_slot(p_cu_q, slot, sequences, BLOCK_M)
    else:
        b = slot % batch
        s = b
        row = slot // batch * BLOCK_M
    q_first, q_count, k_first, k_count, position = place(
        p_cu_q, p_cu_k, b, s, sequences, queries, keys, q_start, kv_lens
    )
    return b, s, row, q_first, q_count, k_first, k_count, position


@triton.jit
def tile_mask(
    p_left, stride_left, b, s, row, q_first, q_count, position, sequences, k_count,
    kv_start, full_from, full_until, window, sink_tokens,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
) -> tuple:  # fmt: skip
    """Where a tile of query rows is, and what it sees; ``row`` counts within the sequence.

    Returns:
        The first row's place in the tensor and its position; how many rows exist from there on,
        and which rows of the tile exist; position of the first real key; ``left`` of each row; and
        the values of :func:`key_blocks`.
    """
    s = tl.minimum(s, sequences - 1)
    start = number(kv_start, s)
    full_first = number(full_from, s)
    full_end = number(full_until, s)
    token = q_first + row
    if p_left is not None:
        p_left += b.to(tl.int64) * stride_left + token
    rows = tl.arange(0, BLOCK_M)
    count = q_count - row
    m_rows = rows < count
    first = position + row
    last = first + tl.minimum(BLOCK_M, count) - 1
    lefts = row_lefts(p_left, first + rows, m_rows, window, full_first, full_end, start)
    low, high = left_range(p_left, lefts, m_rows, first, last, window, full_first, full_end, start)
    blocks = key_blocks(low, high, first, last, start, sink_tokens, k_count, BLOCK_N)
    return token, first, count, m_rows, start, lefts, blocks


@triton.jit
def soften(scores, top, total, scale_log2, SOME: tl.constexpr) -> tuple:
    """One step of the online softmax, in base 2.

    ``top`` and ``total`` are the rows' maxima and sums so far; ``SOME`` says that a row may have
    seen no key yet.

    Returns:
        Weights of the scores, the new maxima and sums, and the factor for older values.
    """
    new = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    base = new
    if SOME:
        base = tl.where(new == float("-inf"), 0.0, new)  # else -inf - -inf
    weights = tl.exp2(scores * scale_log2 - base[:, None])
    shrink = tl.exp2(top - base)
    return weights, new, total * shrink + tl.sum(weights, 1), shrink


@triton.jit
def row_lefts(p_left, positions, m_rows, window, full_from, full_until, start) -> tl.tensor:
    """``left`` of each row: declared (``p_left`` points to the first row's), or computed."""
    if p_left is not None:
        rows = tl.arange(0, positions.shape[0])
        return tl.load(p_left + rows, mask=m_rows, other=0).to(tl.int32)
    else:  # noqa: RET505
        full = (positions >= full_from) & (positions < full_until)
        return tl.where(full, start, positions - window + 1)


@triton.jit
def left_range(p_left, lefts, m_rows, first, last, window, full_from, full_until, start) -> tuple:
    """Smallest and largest ``left`` of the rows at ``[first, last]``, raised to ``start``."""
    if p_left is not None:
        low = tl.min(tl.where(m_rows, lefts, NEVER))
        high = tl.max(tl.where(m_rows, lefts, -NEVER))
    else:
        full_first = tl.maximum(full_from, first)
        full_last = tl.minimum(full_until - 1, last)
        some_full = full_first <= full_last
        all_full = (full_first == first) & (full_last == last)
        low = tl.where(some_full, start, first - window + 1)
        high = tl.where(all_full, start, last - window + 1)
    return tl.maximum(low, start), tl.maximum(high, start)


@triton.jit
def key_blocks(low, high, first, last, start, sink_tokens, k_count, BLOCK_N: tl.constexpr) -> tuple:
    """Blocks of keys that the rows at positions ``[first, last]`` see, by kind.

    In keys: ``[start, sink_end)`` sinks, outside the window | ``[low, ..)`` edge: some rows see a
    key and others do not | inner: every row sees every key | ``[.., end)`` edge again.

    Returns:
        The first key of the window; numbers of sink blocks, of edge blocks before the inner ones,
        of inner blocks, and of edge blocks after them; the end of the sinks and of the keys.
    """
    end = tl.minimum(last + 1, k_count)
    sink_end = start + sink_tokens
    sinks_read = start + tl.cdiv(sink_tokens, BLOCK_N) * BLOCK_N
    low = tl.where(low <= sinks_read, start, low)  # one contiguous range: no separate sinks
    apart = tl.where(low > start, tl.minimum(sink_end, end) - start, 0)
    sinks = tl.cdiv(tl.maximum(apart, 0), BLOCK_N)
    blocks = tl.cdiv(tl.maximum(end - low, 0), BLOCK_N)
    before = tl.minimum(tl.cdiv(tl.maximum(high - low, 0), BLOCK_N), blocks)
    inner = tl.maximum((tl.minimum(first + 1, end) - low) // BLOCK_N - before, 0)
    return low, sinks, before, inner, blocks - before - inner, sink_end, end


@triton.jit
def masked_block(
    block, low, start, sinks, before, inner, sink_end, end, BLOCK_N: tl.constexpr
) -> tuple:
    """First key of the ``block``-th block that needs a mask, and where its keys end."""
    skipped = tl.where(block < sinks + before, 0, inner)
    in_sinks = block < sinks
    key = tl.where(in_sinks, start + block * BLOCK_N, low + (block - sinks + skipped) * BLOCK_N)
    return key, tl.where(in_sinks, tl.minimum(sink_end, end), end)


@triton.jit
def visible(positions, j, lefts, sink_end, limit) -> tl.tensor:
    """The rule of the mask for keys ``start <= j < limit``."""
    kept = (j >= lefts) | (j < sink_end)
    return kept & (j <= positions) & (j < limit)


@triton.jit
def load_tile(
    source,
    b,
    first,
    count,
    head,
    stride_b,
    stride_t,
    stride_h,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TMA: tl.constexpr,
    WHOLE: tl.constexpr,
) -> tl.tensor:
    """Tokens ``[first, first + BLOCK)`` of one head, ``[BLOCK, BLOCK_D]``; zero from ``count`` on.

    ``TMA`` reads through a descriptor, which stops only at the end of the tensor: rows from
    ``count`` on then hold whatever is there. ``WHOLE`` promises that all rows exist.
    """
    if TMA:
        b_x = source.load([b, first, head, 0]).reshape(BLOCK, BLOCK_D)
    else:
        rows = tl.arange(0, BLOCK)
        columns = tl.arange(0, BLOCK_D)
        base = source + b.to(tl.int64) * stride_b + first.to(tl.int64) * stride_t + head * stride_h
        pointers = base + rows[:, None] * stride_t + columns[None, :]
        if not WHOLE:
            m_x = (rows[:, None] < count) & (columns[None, :] < D)
            b_x = tl.load(pointers, mask=m_x, other=0.0)
        elif BLOCK_D != D:
            b_x = tl.load(pointers, mask=columns[None, :] < D, other=0.0)
        else:
            b_x = tl.load(pointers)
    return b_x
