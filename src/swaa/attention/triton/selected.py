"""Attention over chosen key blocks, added to the result of a sliding pass: one program per tile.

The sliding pass has computed each row's output and log-sum-exp over sinks and window. From them a
program continues the online softmax with the keys that were chosen for its block of rows and are
neither sinks nor in the window, and writes both back.
"""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from swaa.attention.call import Selection
from swaa.attention.selection import KEY_BLOCK, ROW_BLOCK
from swaa.attention.triton.sequences import (
    LENGTHS,
    LN_2,
    LOG2_E,
    Numbers,
    left_range,
    number,
    row_lefts,
    soften,
)
from swaa.attention.triton.tiles import tile_for


def add_selected(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    numbers: Numbers,
    scale: float,
    selection: Selection,
    output: Tensor,
    lse: Tensor,
) -> None:
    """Add the chosen keys to a sliding pass, in place.

    Args:
        q: ``[batch, queries, heads, head_dim]``.
        k: ``[batch, keys, kv_heads, head_dim]``.
        v: as ``k``.
        numbers: the mask and the layout of the sliding pass; not packed.
        scale: factor of the scores.
        selection: the blocks of each block of rows.
        output: ``[batch, queries, heads, head_dim]`` of the sliding pass.
        lse: float32 ``[batch, heads, queries]`` of the sliding pass, contiguous.
    """
    batch, queries, heads, head_dim = q.shape
    tile = tile_for("selected", q.device, q.dtype, head_dim)
    kv_heads, row_blocks, most = selection.blocks.shape[1:]
    programs = row_blocks * (ROW_BLOCK // tile.block_m) * heads * batch
    selected_kernel[(programs,)](
        q,
        k,
        v,
        output,
        lse,
        selection.blocks.contiguous(),
        selection.counts.contiguous(),
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *output.stride()[:3],
        numbers.p_left,
        numbers.stride_left,
        batch,
        queries,
        numbers.keys,
        numbers.q_start,
        numbers.kv_start,
        numbers.kv_lens,
        numbers.full_from,
        numbers.full_until,
        numbers.window,
        numbers.sink_tokens,
        row_blocks,
        most,
        scale * LOG2_E.value,
        HEADS=heads,
        GROUP=heads // kv_heads,
        D=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        ROWS=ROW_BLOCK,
        BLOCK_M=tile.block_m,
        BLOCK_N=KEY_BLOCK,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


@triton.jit
def rows_of_block(
    r, first_slot, start, queries, ROWS: tl.constexpr, SUB: tl.constexpr, BLOCK_M: tl.constexpr
) -> tuple:
    """Slots of a tile of rows, their indices in the call, which of them exist, the first position.

    ``r`` counts blocks of ``ROWS`` rows from the one that holds the call's first row; ``SUB`` is
    the tile within it.
    """
    block = tl.maximum(first_slot - start, 0) // ROWS + r
    top = block * ROWS + SUB * BLOCK_M
    slots = start + top + tl.arange(0, BLOCK_M)
    index = slots - first_slot
    return slots, index, (index >= 0) & (index < queries), top


@triton.jit
def tile_of_program(
    batch, row_blocks, HEADS: tl.constexpr, GROUP: tl.constexpr, TILES: tl.constexpr
) -> tuple:
    """Head and kv head, tile within the block of rows, batch entry, block of rows, and its list.

    The heads of a group are adjacent, because they read the same keys; late blocks come first.
    """
    pid = tl.program_id(0)
    head = pid % HEADS
    rest = pid // (HEADS * TILES)
    b = rest % batch
    r = row_blocks - 1 - rest // batch
    kv_head = head // GROUP
    p_list = (b.to(tl.int64) * (HEADS // GROUP) + kv_head) * row_blocks + r
    return head, kv_head, pid // HEADS % TILES, b, r, p_list


@triton.jit(do_not_specialize=[*LENGTHS, "row_blocks", "most"])
def selected_kernel(
    p_q,
    p_k,
    p_v,
    p_o,
    p_lse,
    p_blocks,
    p_count,
    stride_qb,
    stride_qt,
    stride_qh,
    stride_kb,
    stride_kt,
    stride_kh,
    stride_vb,
    stride_vt,
    stride_vh,
    stride_ob,
    stride_ot,
    stride_oh,
    p_left,
    stride_left,
    batch,
    queries,
    keys,
    q_start,
    kv_start,
    kv_lens,
    full_from,
    full_until,
    window,
    sink_tokens,
    row_blocks,
    most,
    scale_log2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """One tile of one head."""
    head, kv_head, sub, b, r, p_list = tile_of_program(
        batch, row_blocks, HEADS, GROUP, ROWS // BLOCK_M
    )
    count = tl.load(p_count + p_list)
    if count == 0:
        return
    p_blocks += p_list * most
    start = number(kv_start, b)
    first_slot = number(q_start, b)
    k_count = tl.minimum(number(kv_lens, b), keys)
    full_first = number(full_from, b)
    full_end = number(full_until, b)
    slots, index, m_rows, top_row = rows_of_block(r, first_slot, start, queries, ROWS, sub, BLOCK_M)
    if p_left is not None:
        p_left += b.to(tl.int64) * stride_left + (start + top_row - first_slot)
    lefts = row_lefts(p_left, slots, m_rows, window, full_first, full_end, start)
    first = start + top_row
    low, _ = left_range(
        p_left, lefts, m_rows, first, first + BLOCK_M - 1, window, full_first, full_end, start
    )
    # A chosen key counts only where it is neither a sink nor in the row's window.
    limits = tl.minimum(tl.minimum(lefts, slots + 1), k_count)
    whole_end = tl.minimum(tl.minimum(low, first + 1), k_count)
    sink_end = start + sink_tokens

    columns = tl.arange(0, BLOCK_D)
    m_d = columns < D
    rows_64 = index.to(tl.int64)
    p_q += b.to(tl.int64) * stride_qb + head * stride_qh
    b_q = tl.load(
        p_q + rows_64[:, None] * stride_qt + columns[None, :],
        mask=m_rows[:, None] & m_d[None, :],
        other=0.0,
    )
    p_o_rows = p_o + b.to(tl.int64) * stride_ob + head * stride_oh
    p_o_rows = p_o_rows + rows_64[:, None] * stride_ot + columns[None, :]
    p_lse_rows = p_lse + (b.to(tl.int64) * HEADS + head) * queries + index
    acc = tl.load(p_o_rows, mask=m_rows[:, None] & m_d[None, :], other=0.0).to(tl.float32)
    top = tl.load(p_lse_rows, mask=m_rows, other=float("-inf")) / LN_2
    total = tl.where(top == float("-inf"), 0.0, 1.0)

    keys_of_block = tl.arange(0, BLOCK_N)
    p_k += b.to(tl.int64) * stride_kb + kv_head * stride_kh
    p_v += b.to(tl.int64) * stride_vb + kv_head * stride_vh
    for n in tl.range(0, count):
        key = start + tl.load(p_blocks + n) * BLOCK_N
        j = key + keys_of_block
        m_k = (j < k_count)[:, None] & m_d[None, :]
        offsets = j.to(tl.int64)[:, None]
        b_k = tl.load(p_k + offsets * stride_kt + columns[None, :], mask=m_k, other=0.0)
        scores = tl.dot(b_q, b_k.T, input_precision="ieee") * scale_log2
        if (key < sink_end) | (key + BLOCK_N > whole_end):
            m_seen = (j[None, :] < limits[:, None]) & (j[None, :] >= sink_end)
            scores = tl.where(m_seen, scores, float("-inf"))
        weights, top, total, shrink = soften(scores, top, total, 1.0, True)
        acc = acc * shrink[:, None]
        b_v = tl.load(p_v + offsets * stride_vt + columns[None, :], mask=m_k, other=0.0)
        acc = tl.dot(weights.to(b_v.dtype), b_v, acc, input_precision="ieee")

    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    lse = tl.where(empty, float("-inf"), (top + tl.log2(total)) * LN_2)
    tl.store(p_lse_rows, lse, mask=m_rows)
    acc = acc / total[:, None]
    tl.store(p_o_rows, acc.to(p_o.dtype.element_ty), mask=m_rows[:, None] & m_d[None, :])
