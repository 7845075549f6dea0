"""Kernels of the gradients through chosen keys; ``selected_backward.py`` explains who does what."""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from swaa.attention.triton.backward_kernels import load_lse
from swaa.attention.triton.selected import rows_of_block, tile_of_program
from swaa.attention.triton.sequences import LENGTHS, number, row_lefts

NOT_SPECIALIZED = (*(name for name in LENGTHS if name != "sequences"), "row_blocks")
"""Arguments whose values must not make a kernel compile again."""


@triton.jit
def choosing_rows(
    r, sub, p_left, stride_left, b, queries, first_slot, start, k_count, full_first, full_end,
    window, ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
) -> tuple:  # fmt: skip
    """A tile of a block of rows: indices in the call, which exist, where their chosen keys end."""
    slots, index, m_rows, top = rows_of_block(r, first_slot, start, queries, ROWS, sub, BLOCK_M)
    if p_left is not None:
        p_left += b.to(tl.int64) * stride_left + (start + top - first_slot)
    lefts = row_lefts(p_left, slots, m_rows, window, full_first, full_end, start)
    return index, m_rows, tl.minimum(tl.minimum(lefts, slots + 1), k_count)


@triton.jit
def load_some(
    pointer, b, index, mask, head, stride_b, stride_t, stride_h,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Tokens at ``index`` of one head, ``[tokens, BLOCK_D]``; zero where the mask is not set."""
    columns = tl.arange(0, BLOCK_D)
    pointer += b.to(tl.int64) * stride_b + head * stride_h
    pointers = pointer + index.to(tl.int64)[:, None] * stride_t + columns[None, :]
    return tl.load(pointers, mask=mask[:, None] & (columns[None, :] < D), other=0.0)


@triton.jit
def add_some(
    pointer, acc, b, index, mask, head, tokens, HEADS: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Add to tokens at ``index`` of one head of a contiguous tensor."""
    columns = tl.arange(0, BLOCK_D)
    pointers = ((b.to(tl.int64) * tokens + index) * HEADS + head) * D
    pointers = pointer + pointers[:, None] + columns[None, :]
    mask = mask[:, None] & (columns[None, :] < D)
    tl.store(pointers, tl.load(pointers, mask=mask, other=0.0) + acc, mask=mask)


@triton.jit(do_not_specialize=[*NOT_SPECIALIZED, "most"])
def selected_dq_kernel(
    p_q,
    p_k,
    p_v,
    p_do,
    p_dq,
    p_lse,
    p_delta,
    p_blocks,
    p_count,
    most,
    stride_qb,
    stride_qt,
    stride_qh,
    stride_kb,
    stride_kt,
    stride_kh,
    stride_vb,
    stride_vt,
    stride_vh,
    stride_gb,
    stride_gt,
    stride_gh,
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
    scale,
    scale_log2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """One tile of one head."""
    PARTS: tl.constexpr = BLOCK // BLOCK_N
    head, kv_head, sub, b, r, p_list = tile_of_program(
        batch, row_blocks, HEADS, GROUP, ROWS // BLOCK_M
    )
    count = tl.load(p_count + p_list)
    if count == 0:
        return
    p_blocks += p_list * most
    start = number(kv_start, b)
    k_count = tl.minimum(number(kv_lens, b), keys)
    sink_end = start + sink_tokens
    index, m_rows, limits = choosing_rows(
        r, sub, p_left, stride_left, b, queries, number(q_start, b), start, k_count,
        number(full_from, b), number(full_until, b), window, ROWS, BLOCK_M,
    )  # fmt: skip
    b_q = load_some(p_q, b, index, m_rows, head, stride_qb, stride_qt, stride_qh, D, BLOCK_D)
    b_do = load_some(p_do, b, index, m_rows, head, stride_gb, stride_gt, stride_gh, D, BLOCK_D)
    o_rows = (b.to(tl.int64) * HEADS + head) * queries + index
    lse = load_lse(p_lse + o_rows, m_rows)
    delta = tl.load(p_delta + o_rows, mask=m_rows, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n in tl.range(0, count * PARTS):
        key = start + tl.load(p_blocks + n // PARTS) * BLOCK + n % PARTS * BLOCK_N
        j = key + tl.arange(0, BLOCK_N)
        b_k = load_some(
            p_k, b, j, j < k_count, kv_head, stride_kb, stride_kt, stride_kh, D, BLOCK_D
        )
        b_v = load_some(
            p_v, b, j, j < k_count, kv_head, stride_vb, stride_vt, stride_vh, D, BLOCK_D
        )
        scores = tl.dot(b_q, b_k.T)
        weights = tl.exp2(scores * scale_log2 - lse[:, None])
        slope = weights * (tl.dot(b_do, b_v.T) - delta[:, None])
        m_seen = (j[None, :] < limits[:, None]) & (j[None, :] >= sink_end)
        slope = tl.where(m_seen, slope, 0.0)
        acc = tl.dot(slope.to(b_k.dtype), b_k, acc)
    add_some(p_dq, acc * scale, b, index, m_rows, head, queries, HEADS, D, BLOCK_D)


@triton.jit(do_not_specialize=[*NOT_SPECIALIZED, "key_blocks"])
def selected_dkdv_kernel(
    p_q,
    p_k,
    p_v,
    p_do,
    p_dk,
    p_dv,
    p_lse,
    p_delta,
    p_rows,
    p_ends,
    key_blocks,
    stride_qb,
    stride_qt,
    stride_qh,
    stride_kb,
    stride_kt,
    stride_kh,
    stride_vb,
    stride_vt,
    stride_vh,
    stride_gb,
    stride_gt,
    stride_gh,
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
    scale,
    scale_log2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """One tile of a block of keys of one kv head; early blocks first: most rows may choose them."""
    KV_HEADS: tl.constexpr = HEADS // GROUP
    PARTS: tl.constexpr = BLOCK // BLOCK_N
    TILES: tl.constexpr = ROWS // BLOCK_M
    pid = tl.program_id(0)
    kv_head = pid % KV_HEADS
    part = pid // KV_HEADS % PARTS
    rest = pid // (KV_HEADS * PARTS)
    b = rest % batch
    block = rest // batch
    p_ends += (b.to(tl.int64) * KV_HEADS + kv_head) * key_blocks + block
    first = tl.load(p_ends)
    count = tl.load(p_ends + 1) - first
    if count == 0:
        return
    p_rows += first
    start = number(kv_start, b)
    first_slot = number(q_start, b)
    k_count = tl.minimum(number(kv_lens, b), keys)
    full_first = number(full_from, b)
    full_end = number(full_until, b)
    j = start + block * BLOCK + part * BLOCK_N + tl.arange(0, BLOCK_N)
    m_keys = j < k_count
    m_chosen = m_keys & (j >= start + sink_tokens)
    b_k = load_some(p_k, b, j, m_keys, kv_head, stride_kb, stride_kt, stride_kh, D, BLOCK_D)
    b_v = load_some(p_v, b, j, m_keys, kv_head, stride_vb, stride_vt, stride_vh, D, BLOCK_D)
    acc_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for n in tl.range(0, count * TILES * GROUP):
        head = kv_head * GROUP + n % GROUP
        r = tl.load(p_rows + n // (TILES * GROUP))
        index, m_rows, limits = choosing_rows(
            r, n // GROUP % TILES, p_left, stride_left, b, queries, first_slot, start, k_count,
            full_first, full_end, window, ROWS, BLOCK_M,
        )  # fmt: skip
        b_q = load_some(p_q, b, index, m_rows, head, stride_qb, stride_qt, stride_qh, D, BLOCK_D)
        b_do = load_some(p_do, b, index, m_rows, head, stride_gb, stride_gt, stride_gh, D, BLOCK_D)
        o_rows = (b.to(tl.int64) * HEADS + head) * queries + index
        lse = load_lse(p_lse + o_rows, m_rows)
        delta = tl.load(p_delta + o_rows, mask=m_rows, other=0.0)
        m_seen = m_chosen[:, None] & (j[:, None] < limits[None, :])
        weights = tl.exp2(tl.dot(b_k, b_q.T) * scale_log2 - lse[None, :])
        weights = tl.where(m_seen, weights, 0.0)
        acc_v = tl.dot(weights.to(b_do.dtype), b_do, acc_v)
        slope = weights * (tl.dot(b_v, b_do.T) - delta[None, :])
        acc_k = tl.dot(slope.to(b_q.dtype), b_q, acc_k)
    add_some(p_dk, acc_k * scale, b, j, m_keys, kv_head, keys, KV_HEADS, D, BLOCK_D)
    add_some(p_dv, acc_v, b, j, m_keys, kv_head, keys, KV_HEADS, D, BLOCK_D)
