"""Choosing key blocks for selected rows: bounds of each block, mean queries, shares, the best.

The kernels write one number per block of rows and block of keys, never one per row and key. The
mean queries of a block of rows are stored together for all heads of a group. A program compares a
tile of them with the bounds of all blocks twice: first for the sum that normalises the shares, then
for the shares, of which the largest counts.
"""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from swaa.attention.call import AttentionCall, Selection
from swaa.attention.selection import (
    KEY_BLOCK,
    ROW_BLOCK,
    ROW_GROUP,
    best_blocks,
    row_block_count,
)
from swaa.attention.triton.sequences import (
    LENGTHS,
    LOG2_E,
    Numbers,
    number,
    numbers_of,
)
from swaa.attention.triton.tiles import tile_for


def select(call: AttentionCall) -> Selection:
    """Choose the blocks of a dense call; see ``swaa.attention.selection``."""
    numbers = numbers_of(call)
    queries = mean_queries(call, numbers)
    return best_blocks(call, block_shares(call, numbers, queries, block_bounds(call, numbers)))


class MeanQueries(NamedTuple):
    """The queries with which blocks of rows score key blocks.

    Attributes:
        values: ``[batch, kv_heads, row_blocks, group * ROW_BLOCK // ROW_GROUP, head_dim]``.
        alive: int8 ``[batch, row_blocks, ROW_BLOCK // ROW_GROUP]``, 0 where no row is selected.
    """

    values: Tensor
    alive: Tensor


def mean_queries(call: AttentionCall, numbers: Numbers) -> MeanQueries:
    """The mean query of every group of selected rows and every head."""
    batch, queries, heads, head_dim = call.q.shape
    kv_heads, row_blocks, groups = call.k.shape[2], row_block_count(call), ROW_BLOCK // ROW_GROUP
    rows = heads // kv_heads * groups
    values = call.q.new_empty(batch, kv_heads, row_blocks, rows, head_dim)
    alive = torch.empty(batch, row_blocks, groups, dtype=torch.int8, device=call.q.device)
    means_kernel[(row_blocks, heads, batch)](
        call.q,
        values,
        alive,
        *call.q.stride()[:3],
        numbers.p_left,
        numbers.stride_left,
        queries,
        numbers.q_start,
        numbers.kv_start,
        numbers.full_from,
        numbers.full_until,
        numbers.window,
        row_blocks,
        HEADS=heads,
        GROUP=heads // kv_heads,
        D=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        ROWS=ROW_BLOCK,
        EACH=ROW_GROUP,
    )
    return MeanQueries(values, alive)


def block_bounds(call: AttentionCall, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Middle and reach of each block's keys, both ``[batch, kv_heads, blocks, head_dim]``."""
    batch, keys, kv_heads, head_dim = call.k.shape
    shape = (batch, kv_heads, keys // KEY_BLOCK, head_dim)
    middle, reach = (call.k.new_empty(shape) for _ in range(2))
    bounds_kernel[(shape[2], kv_heads, batch)](
        call.k,
        middle,
        reach,
        *call.k.stride()[:3],
        *middle.stride()[:3],
        numbers.keys,
        numbers.kv_start,
        D=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_N=KEY_BLOCK,
    )
    return middle, reach


def block_shares(
    call: AttentionCall, numbers: Numbers, queries: MeanQueries, bounds: tuple[Tensor, Tensor]
) -> Tensor:
    """Largest share of each key block, float32 ``[batch, kv_heads, row_blocks, blocks]``.

    It is zero where a block of rows cannot choose a key block.
    """
    middle, reach = bounds
    batch, kv_heads, row_blocks, rows, head_dim = queries.values.shape
    blocks = middle.shape[2]
    shares = call.q.new_zeros(batch, kv_heads, row_blocks, blocks, dtype=torch.float32)
    tile = tile_for("scoring", call.q.device, call.q.dtype, head_dim)
    tiles = triton.cdiv(rows, tile.block_m)
    shares_kernel[(row_blocks * tiles * kv_heads * batch,)](
        queries.values,
        queries.alive,
        middle,
        reach,
        shares,
        *middle.stride()[:3],
        batch,
        numbers.q_start,
        numbers.kv_start,
        numbers.window,
        numbers.sink_tokens,
        row_blocks,
        blocks,
        call.scale * LOG2_E.value,
        KV_HEADS=kv_heads,
        TILES=tiles,
        COUNT=rows,
        GROUPS=ROW_BLOCK // ROW_GROUP,
        D=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        ROWS=ROW_BLOCK,
        KEYS=KEY_BLOCK,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return shares


@triton.jit(do_not_specialize=[*LENGTHS, "row_blocks"])
def means_kernel(
    p_q,
    p_values,
    p_alive,
    stride_qb,
    stride_qt,
    stride_qh,
    p_left,
    stride_left,
    queries,
    q_start,
    kv_start,
    full_from,
    full_until,
    window,
    row_blocks,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    EACH: tl.constexpr,
) -> None:
    """Mean queries of one head in one block of rows; the first head writes ``alive``."""
    GROUPS: tl.constexpr = ROWS // EACH
    r = tl.program_id(0)
    head = tl.program_id(1)
    b = tl.program_id(2)
    start = number(kv_start, b)
    first_slot = number(q_start, b)
    block = tl.maximum(first_slot - start, 0) // ROWS + r
    top_row = start + block * ROWS - first_slot
    groups = tl.arange(0, GROUPS)
    columns = tl.arange(0, BLOCK_D)
    p_rows = p_q + b.to(tl.int64) * stride_qb + head * stride_qh
    total = tl.zeros([GROUPS, BLOCK_D], tl.float32)
    count = tl.zeros([GROUPS], tl.float32)
    for n in tl.static_range(EACH):
        index = top_row + groups * EACH + n
        m_rows = (index >= 0) & (index < queries)
        slots = first_slot + index
        if p_left is not None:
            lefts = tl.load(p_left + b.to(tl.int64) * stride_left + index, mask=m_rows, other=0)
            lefts = lefts.to(tl.int32)
        else:
            full = (slots >= number(full_from, b)) & (slots < number(full_until, b))
            lefts = tl.where(full, start, slots - window + 1)
        m_rows = m_rows & (lefts > start)  # others see every key, or none
        p_row = p_rows + index.to(tl.int64)[:, None] * stride_qt + columns[None, :]
        total += tl.load(p_row, mask=m_rows[:, None] & (columns < D)[None, :], other=0.0)
        count += tl.where(m_rows, 1.0, 0.0)
    mean = total / tl.maximum(count, 1.0)[:, None]
    kv_head = head // GROUP
    place = ((b.to(tl.int64) * (HEADS // GROUP) + kv_head) * row_blocks + r) * GROUP + head % GROUP
    p_mean = p_values + (place * GROUPS + groups)[:, None] * D + columns[None, :]
    tl.store(p_mean, mean.to(p_values.dtype.element_ty), mask=(columns < D)[None, :])
    if head == 0:
        alive = (count > 0).to(tl.int8)
        tl.store(p_alive + (b.to(tl.int64) * row_blocks + r) * GROUPS + groups, alive)


@triton.jit(do_not_specialize=["keys", "kv_start"])
def bounds_kernel(
    p_k,
    p_middle,
    p_reach,
    stride_kb,
    stride_kt,
    stride_kh,
    stride_mb,
    stride_mh,
    stride_mn,
    keys,
    kv_start,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Range of each channel's values in a block, as its middle and half its width."""
    n = tl.program_id(0)
    head = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    j = number(kv_start, b) + n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_k = (j < keys)[:, None] & (columns < D)[None, :]
    p_tile = p_k + b * stride_kb + head * stride_kh + j.to(tl.int64)[:, None] * stride_kt
    b_k = tl.load(p_tile + columns[None, :], mask=m_k, other=0.0).to(tl.float32)
    high = tl.max(b_k, 0)
    low = tl.min(b_k, 0)
    offset = b * stride_mb + head * stride_mh + n * stride_mn + columns
    kind = p_middle.dtype.element_ty
    tl.store(p_middle + offset, ((high + low) * 0.5).to(kind), mask=columns < D)
    tl.store(p_reach + offset, ((high - low) * 0.5).to(kind), mask=columns < D)


@triton.jit
def load_bounds(
    p_x, first, end, stride_n, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr
) -> tl.tensor:
    """Bounds of blocks ``[first, first + BLOCK_N)``: ``[BLOCK_N, BLOCK_D]``, zero from end on."""
    n = first + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    m_x = (n < end)[:, None] & (columns < D)[None, :]
    return tl.load(p_x + n.to(tl.int64)[:, None] * stride_n + columns[None, :], mask=m_x, other=0.0)


@triton.jit(do_not_specialize=[*LENGTHS, "row_blocks", "blocks"])
def shares_kernel(
    p_q,
    p_alive,
    p_middle,
    p_reach,
    p_shares,
    stride_mb,
    stride_mh,
    stride_mn,
    batch,
    q_start,
    kv_start,
    window,
    sink_tokens,
    row_blocks,
    blocks,
    scale_log2,
    KV_HEADS: tl.constexpr,
    TILES: tl.constexpr,
    COUNT: tl.constexpr,
    GROUPS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Shares of one tile of mean queries; late rows score the most blocks, so they go first."""
    pid = tl.program_id(0)
    tile = pid % TILES
    kv_head = pid // TILES % KV_HEADS
    rest = pid // (TILES * KV_HEADS)
    b = rest % batch
    r = row_blocks - 1 - rest // batch
    start = number(kv_start, b)
    block = tl.maximum(number(q_start, b) - start, 0) // ROWS + r
    scored = tl.minimum(block * (ROWS // KEYS), blocks)
    begin = sink_tokens // KEYS
    end = tl.minimum(scored, tl.cdiv(tl.maximum((block + 1) * ROWS - window, 0), KEYS))
    if end <= begin:
        return
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    m_rows = rows < COUNT
    p_alive += (b.to(tl.int64) * row_blocks + r) * GROUPS
    m_rows = m_rows & (tl.load(p_alive + rows % GROUPS, mask=m_rows, other=0) != 0)
    if tl.max(m_rows.to(tl.int32), 0) == 0:
        return

    columns = tl.arange(0, BLOCK_D)
    place = (b.to(tl.int64) * KV_HEADS + kv_head) * row_blocks + r
    p_rows = p_q + (place * COUNT + rows)[:, None] * D + columns[None, :]
    b_q = tl.load(p_rows, mask=m_rows[:, None] & (columns < D)[None, :], other=0.0)
    b_abs = tl.abs(b_q)
    offset = b.to(tl.int64) * stride_mb + kv_head * stride_mh
    p_middle += offset
    p_reach += offset
    within = tl.arange(0, BLOCK_N)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in tl.range(0, scored, BLOCK_N):
        b_middle = load_bounds(p_middle, first, scored, stride_mn, D, BLOCK_D, BLOCK_N)
        b_reach = load_bounds(p_reach, first, scored, stride_mn, D, BLOCK_D, BLOCK_N)
        scores = tl.dot(b_q, b_middle.T, input_precision="ieee")
        scores = tl.dot(b_abs, b_reach.T, scores, input_precision="ieee") * scale_log2
        scores = tl.where((first + within < scored)[None, :], scores, float("-inf"))
        new = tl.maximum(top, tl.max(scores, 1))
        total = total * tl.exp2(top - new) + tl.sum(tl.exp2(scores - new[:, None]), 1)
        top = new
    lse = tl.where(m_rows, top + tl.log2(total), float("inf"))

    p_shares += place * blocks
    for first in tl.range(begin, end, BLOCK_N):
        b_middle = load_bounds(p_middle, first, scored, stride_mn, D, BLOCK_D, BLOCK_N)
        b_reach = load_bounds(p_reach, first, scored, stride_mn, D, BLOCK_D, BLOCK_N)
        scores = tl.dot(b_middle, b_q.T, input_precision="ieee")
        scores = tl.dot(b_reach, b_abs.T, scores, input_precision="ieee") * scale_log2
        share = tl.exp2(tl.max(scores - lse[None, :], 1))
        n = first + within
        tl.atomic_max(p_shares + n, share, mask=n < end, sem="relaxed")
