"""The kernels of the backward pass; ``backward.py`` explains how they divide the work."""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from swaa.attention.triton.sequences import (
    LENGTHS,
    LOG2_E,
    NEVER,
    load_tile,
    masked_block,
    number,
    place,
    query_tile,
    row_lefts,
    span,
    tile_mask,
    tile_of_slot,
    visible,
)

GROUP_TILES = tl.constexpr(32)
"""Row tiles whose declared lefts are read together."""


@triton.jit
def load_lse(pointers, mask) -> tl.tensor:
    """Base 2 log-sum-exp of rows; infinite where there is none, so that all weights are 0."""
    lse = tl.load(pointers, mask=mask, other=float("-inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse * LOG2_E)


@triton.jit(do_not_specialize=LENGTHS)
def dq_kernel(
    p_q,
    k,
    v,
    p_o,
    p_do,
    p_dq,
    p_lse,
    p_dlse,
    p_delta,
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
    stride_gb,
    stride_gt,
    stride_gh,
    p_cu_q,
    p_cu_k,
    p_left,
    stride_left,
    sequences,
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
    scale,
    scale_log2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    CLEAN: tl.constexpr,
) -> None:
    """Gradient of one query tile of one head, and its rows' ``delta``."""
    pid = tl.program_id(0)
    head = pid % HEADS
    slot = tl.num_programs(0) // HEADS - 1 - pid // HEADS
    b, s, row, q_first, q_count, k_first, k_count, position = query_tile(
        slot, batch, p_cu_q, p_cu_k, sequences, queries, keys, q_start, kv_lens, BLOCK_M
    )
    if row >= q_count:
        return
    token, first, count, m_rows, start, lefts, blocks = tile_mask(
        p_left, stride_left, b, s, row, q_first, q_count, position, sequences, k_count,
        kv_start, full_from, full_until, window, sink_tokens, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    low, sinks, before, inner, after, sink_end, end = blocks
    rows = tl.arange(0, BLOCK_M)
    positions = first + rows

    b_q = load_tile(
        p_q, b, token, count, head, stride_qb, stride_qt, stride_qh,
        BLOCK_M, D, BLOCK_D, False, False,
    )  # fmt: skip
    b_do = load_tile(
        p_do, b, token, count, head, stride_gb, stride_gt, stride_gh,
        BLOCK_M, D, BLOCK_D, False, False,
    )  # fmt: skip
    b_o = load_tile(
        p_o, b, token, count, head, stride_ob, stride_ot, stride_oh,
        BLOCK_M, D, BLOCK_D, False, False,
    )  # fmt: skip
    o_rows = (b.to(tl.int64) * HEADS + head) * queries + token + rows
    delta = tl.sum(b_o.to(tl.float32) * b_do.to(tl.float32), 1)
    if p_dlse is not None:
        delta -= tl.load(p_dlse + o_rows, mask=m_rows, other=0.0)
    tl.store(p_delta + o_rows, delta, mask=m_rows)
    lse = load_lse(p_lse + o_rows, m_rows)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    kv_head = head // GROUP
    for block in tl.range(0, inner):
        key = low + (before + block) * BLOCK_N
        b_k = load_tile(
            k, b, k_first + key, k_count - key, kv_head, stride_kb, stride_kt, stride_kh,
            BLOCK_N, D, BLOCK_D, TMA, True,
        )  # fmt: skip
        b_v = load_tile(
            v, b, k_first + key, k_count - key, kv_head, stride_vb, stride_vt, stride_vh,
            BLOCK_N, D, BLOCK_D, TMA, True,
        )  # fmt: skip
        scores = tl.dot(b_q, b_k.T)
        weights = tl.exp2(scores * scale_log2 - lse[:, None])
        slope = tl.dot(b_do, b_v.T)
        slope = weights * (slope - delta[:, None])
        acc = tl.dot(slope.to(b_k.dtype), b_k, acc)

    for block in tl.range(0, sinks + before + after):
        key, limit = masked_block(block, low, start, sinks, before, inner, sink_end, end, BLOCK_N)
        j = key + tl.arange(0, BLOCK_N)
        b_k = load_tile(
            k, b, k_first + key, k_count - key, kv_head, stride_kb, stride_kt, stride_kh,
            BLOCK_N, D, BLOCK_D, TMA, False,
        )  # fmt: skip
        b_v = load_tile(
            v, b, k_first + key, k_count - key, kv_head, stride_vb, stride_vt, stride_vh,
            BLOCK_N, D, BLOCK_D, TMA, False,
        )  # fmt: skip
        scores = tl.dot(b_q, b_k.T)
        m_seen = visible(positions[:, None], j[None, :], lefts[:, None], sink_end, limit)
        weights = tl.exp2(scores * scale_log2 - lse[:, None])
        slope = tl.dot(b_do, b_v.T)
        slope = tl.where(m_seen, weights * (slope - delta[:, None]), 0.0)
        if CLEAN:  # a key that does not exist has slope 0, but 0 * NaN is NaN
            b_k = tl.where(j[:, None] < k_count, b_k, 0.0)
        acc = tl.dot(slope.to(b_k.dtype), b_k, acc)

    columns = tl.arange(0, BLOCK_D)
    o_dq = ((b.to(tl.int64) * queries + token + rows) * HEADS + head) * D
    tl.store(
        p_dq + o_dq[:, None] + columns[None, :],
        (acc * scale).to(p_dq.dtype.element_ty),
        mask=m_rows[:, None] & (columns[None, :] < D),
    )


@triton.jit
def add_rows(
    acc_k, acc_v, b_k, b_v, q, do, p_lse, p_delta, b, token, count, queries, head, m_seen,
    stride_qb, stride_qt, stride_qh, stride_gb, stride_gt, stride_gh, scale_log2,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    TMA: tl.constexpr, CLEAN: tl.constexpr,
) -> tuple:  # fmt: skip
    """Add the gradients that the keys get from the rows ``[token, token + count)`` of a tile.

    ``m_seen`` is ``[BLOCK_N, BLOCK_M]``, or None where every row sees every key.
    """
    WHOLE: tl.constexpr = m_seen is None
    b_q = load_tile(
        q, b, token, count, head, stride_qb, stride_qt, stride_qh,
        BLOCK_M, D, BLOCK_D, TMA, WHOLE,
    )  # fmt: skip
    b_do = load_tile(
        do, b, token, count, head, stride_gb, stride_gt, stride_gh,
        BLOCK_M, D, BLOCK_D, TMA, WHOLE,
    )  # fmt: skip
    rows = tl.arange(0, BLOCK_M)
    o_rows = (b.to(tl.int64) * HEADS + head) * queries + token + rows
    if WHOLE:
        lse = tl.load(p_lse + o_rows) * LOG2_E
        delta = tl.load(p_delta + o_rows)
    else:
        if CLEAN:  # a row that does not exist has weight 0, but 0 * NaN is NaN
            b_q = tl.where(rows[:, None] < count, b_q, 0.0)
            b_do = tl.where(rows[:, None] < count, b_do, 0.0)
        lse = load_lse(p_lse + o_rows, rows < count)
        delta = tl.load(p_delta + o_rows, mask=rows < count, other=0.0)
    scores = tl.dot(b_k, b_q.T)
    weights = tl.exp2(scores * scale_log2 - lse[None, :])
    if not WHOLE:
        weights = tl.where(m_seen, weights, 0.0)
    acc_v = tl.dot(weights.to(b_do.dtype), b_do, acc_v)
    slope = tl.dot(b_v, b_do.T)
    slope = weights * (slope - delta[None, :])
    acc_k = tl.dot(slope.to(b_q.dtype), b_q, acc_k)
    return acc_k, acc_v


@triton.jit(do_not_specialize=(*LENGTHS, "sink_slots"))
def dkdv_kernel(
    q,
    p_k,
    p_v,
    do,
    p_dk,
    p_dv,
    p_lse,
    p_delta,
    p_sums,
    p_lows,
    sink_slots,
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
    p_cu_q,
    p_cu_k,
    p_left,
    stride_left,
    sequences,
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
    scale,
    scale_log2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    CLEAN: tl.constexpr,
) -> None:
    """Gradients of one key tile of one kv head: of rows that see it not as a sink, plus sums."""
    KV_HEADS: tl.constexpr = HEADS // GROUP
    pid = tl.program_id(0)
    kv_head = pid % KV_HEADS
    slot = pid // KV_HEADS
    if p_cu_k is not None:
        b = tl.full([], 0, tl.int32)
        s, key = tile_of_slot(p_cu_k, slot, sequences, BLOCK_N)
        k_first, k_slots = span(p_cu_k, s, sequences, keys)
    else:
        b = slot % batch
        s = b
        key = slot // batch * BLOCK_N
        k_first = tl.full([], 0, tl.int32)
        k_slots = keys.to(tl.int32)
    if key >= k_slots:
        return
    q_first, q_count, _, k_count, position = place(
        p_cu_q, p_cu_k, b, s, sequences, queries, keys, q_start, kv_lens
    )
    s = tl.minimum(s, sequences - 1)
    start = number(kv_start, s)
    full_first = number(full_from, s)
    full_end = number(full_until, s)

    columns = tl.arange(0, BLOCK_D)
    j = key + tl.arange(0, BLOCK_N)
    b_k = load_tile(
        p_k, b, k_first + key, k_count - key, kv_head, stride_kb, stride_kt, stride_kh,
        BLOCK_N, D, BLOCK_D, False, False,
    )  # fmt: skip
    b_v = load_tile(
        p_v, b, k_first + key, k_count - key, kv_head, stride_vb, stride_vt, stride_vh,
        BLOCK_N, D, BLOCK_D, False, False,
    )  # fmt: skip
    acc_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if p_sums is not None:
        m_sinks = ((j >= start) & (j < start + tl.minimum(sink_tokens, sink_slots)))[:, None]
        o_sums = (s.to(tl.int64) * KV_HEADS + kv_head) * sink_slots
        p_sink_k = p_sums + (o_sums + j - start)[:, None] * BLOCK_D + columns[None, :]
        acc_k = tl.load(p_sink_k, mask=m_sinks, other=0.0)
        p_sink_v = p_sink_k + sequences.to(tl.int64) * KV_HEADS * sink_slots * BLOCK_D
        acc_v = tl.load(p_sink_v, mask=m_sinks, other=0.0)

    j_last = tl.minimum(key + BLOCK_N, k_count) - 1
    head = kv_head * GROUP
    row = tl.maximum(tl.maximum(key, start) - position, 0)
    rows = tl.arange(0, BLOCK_M)
    none = (j_last < key) | (j_last < start)
    if p_left is None:
        # Tiles of rows: [row, ..) edge | inner: every row sees every key | [.., row_end) edge,
        # then the full rows after them.
        row_end = tl.minimum(q_count, j_last + window - position)
        tiles = tl.where(none, 0, tl.cdiv(tl.maximum(row_end - row, 0), BLOCK_M))
        before = tl.cdiv(tl.maximum(j_last - position - row, 0), BLOCK_M)
        before = tl.minimum(before, tiles)
        whole = tl.minimum(q_count, key + window - position) - row
        inner = tl.minimum(tl.maximum(whole // BLOCK_M - before, 0), tiles - before)
        full_row = tl.maximum(full_first - position, row + tiles * BLOCK_M)
        full_rows = tl.minimum(full_end - tl.maximum(position, 0), q_count) - full_row
        full = tl.where(none, 0, tl.cdiv(tl.maximum(full_rows, 0), BLOCK_M))
        for n in tl.range(0, GROUP * inner):
            g = n // inner
            r = row + (before + n - g * inner) * BLOCK_M
            acc_k, acc_v = add_rows(
                acc_k, acc_v, b_k, b_v, q, do, p_lse, p_delta, b, q_first + r, q_count - r,
                queries, head + g, None,
                stride_qb, stride_qt, stride_qh, stride_gb, stride_gt, stride_gh, scale_log2,
                HEADS, D, BLOCK_D, BLOCK_M, TMA, CLEAN,
            )  # fmt: skip
        masked = tiles - inner + full
        for n in tl.range(0, GROUP * masked):
            g = n // masked
            t = n - g * masked
            r = row + tl.where(t < before, t, t + inner) * BLOCK_M
            r = tl.where(t < tiles - inner, r, full_row + (t - tiles + inner) * BLOCK_M)
            positions = position + r + rows
            lefts = row_lefts(p_left, positions, rows, window, full_first, full_end, start)
            m_seen = visible(positions[None, :], j[:, None], lefts[None, :], 0, k_count)
            acc_k, acc_v = add_rows(
                acc_k, acc_v, b_k, b_v, q, do, p_lse, p_delta, b, q_first + r, q_count - r,
                queries, head + g, m_seen,
                stride_qb, stride_qt, stride_qh, stride_gb, stride_gt, stride_gh, scale_log2,
                HEADS, D, BLOCK_D, BLOCK_M, TMA, CLEAN,
            )  # fmt: skip
    else:
        p_left += b.to(tl.int64) * stride_left + q_first
        tiles = tl.where(none, 0, tl.cdiv(q_count, BLOCK_M))
        if p_cu_q is not None:
            p_lows += q_first // BLOCK_M + s
        else:
            p_lows += b.to(tl.int64) * tl.cdiv(queries, BLOCK_M)
        members = tl.arange(0, GROUP_TILES)
        for first in tl.range(row // BLOCK_M, tiles, GROUP_TILES):
            t = first + members
            m_reach = tl.load(p_lows + t, mask=t < tiles, other=NEVER) <= j_last
            nearest = tl.min(tl.where(m_reach, t, NEVER))
            found = tl.maximum(tl.max(tl.where(m_reach, t, -1)) - nearest + 1, 0)
            for n in tl.range(0, GROUP * found):
                g = n // found
                r = (nearest + n - g * found) * BLOCK_M
                positions = position + r + rows
                m_rows = rows < q_count - r
                lefts = row_lefts(
                    p_left + r, positions, m_rows, window, full_first, full_end, start
                )
                m_seen = visible(positions[None, :], j[:, None], lefts[None, :], 0, k_count)
                acc_k, acc_v = add_rows(
                    acc_k, acc_v, b_k, b_v, q, do, p_lse, p_delta, b, q_first + r, q_count - r,
                    queries, head + g, m_seen,
                    stride_qb, stride_qt, stride_qh, stride_gb, stride_gt, stride_gh, scale_log2,
                    HEADS, D, BLOCK_D, BLOCK_M, TMA, CLEAN,
                )  # fmt: skip

    # Keys that no row may see (padding, slots after the length) were not masked: clear them.
    m_keys = ((j >= start) & (j < k_count))[:, None]
    o_keys = ((b.to(tl.int64) * keys + k_first + j) * KV_HEADS + kv_head) * D
    o_keys = o_keys[:, None] + columns[None, :]
    m_store = (j[:, None] < k_slots) & (columns[None, :] < D)
    acc_k = tl.where(m_keys, acc_k * scale, 0.0)
    tl.store(p_dk + o_keys, acc_k.to(p_dk.dtype.element_ty), mask=m_store)
    acc_v = tl.where(m_keys, acc_v, 0.0)
    tl.store(p_dv + o_keys, acc_v.to(p_dv.dtype.element_ty), mask=m_store)


@triton.jit(do_not_specialize=(*LENGTHS, "slices", "sink_slots"))
def sinks_kernel(
    q,
    p_k,
    p_v,
    do,
    p_lse,
    p_delta,
    p_sums,
    slices,
    sink_slots,
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
    p_cu_q,
    p_cu_k,
    p_left,
    stride_left,
    sequences,
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
    scale,
    scale_log2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    CLEAN: tl.constexpr,
) -> None:
    """Gradients of a block of sinks from one slice of the rows that see it as sinks."""
    KV_HEADS: tl.constexpr = HEADS // GROUP
    pid = tl.program_id(0)
    kv_head = pid % KV_HEADS
    block = pid // KV_HEADS % (sink_slots // BLOCK_N)
    part = pid // KV_HEADS // (sink_slots // BLOCK_N)
    s = part % sequences
    part = part // sequences
    b = s if p_cu_q is None else s * 0
    q_first, q_count, k_first, k_count, position = place(
        p_cu_q, p_cu_k, b, s, sequences, queries, keys, q_start, kv_lens
    )
    start = number(kv_start, s)
    full_first = number(full_from, s)
    full_end = number(full_until, s)
    key = start + block * BLOCK_N
    j = key + tl.arange(0, BLOCK_N)
    b_k = load_tile(
        p_k, b, k_first + key, k_count - key, kv_head, stride_kb, stride_kt, stride_kh,
        BLOCK_N, D, BLOCK_D, False, False,
    )  # fmt: skip
    b_v = load_tile(
        p_v, b, k_first + key, k_count - key, kv_head, stride_vb, stride_vt, stride_vh,
        BLOCK_N, D, BLOCK_D, False, False,
    )  # fmt: skip
    acc_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if p_left is None:
        row = tl.maximum(start + window - position, 0)  # earlier rows hold every sink in the window
    else:
        row = tl.maximum(start - position, 0)
        p_left += b.to(tl.int64) * stride_left + q_first
    tiles = tl.cdiv(tl.cdiv(tl.maximum(q_count - row, 0), slices), BLOCK_M)
    row += part * tiles * BLOCK_M
    tiles = tl.minimum(tiles, tl.cdiv(tl.maximum(q_count - row, 0), BLOCK_M))
    rows = tl.arange(0, BLOCK_M)
    limit = tl.minimum(start + sink_tokens, k_count)
    for n in tl.range(0, GROUP * tiles):
        g = n // tiles
        r = row + (n - g * tiles) * BLOCK_M
        positions = position + r + rows
        m_rows = rows < q_count - r
        p_lefts = p_left
        if p_left is not None:
            p_lefts = p_left + r
        lefts = row_lefts(p_lefts, positions, m_rows, window, full_first, full_end, start)
        as_sink = (j[:, None] < lefts[None, :]) & (j[:, None] < limit)
        acc_k, acc_v = add_rows(
            acc_k, acc_v, b_k, b_v, q, do, p_lse, p_delta, b, q_first + r, q_count - r,
            queries, kv_head * GROUP + g, as_sink & (j[:, None] <= positions[None, :]),
            stride_qb, stride_qt, stride_qh, stride_gb, stride_gt, stride_gh, scale_log2,
            HEADS, D, BLOCK_D, BLOCK_M, TMA, CLEAN,
        )  # fmt: skip
    columns = tl.arange(0, BLOCK_D)
    size = sequences.to(tl.int64) * KV_HEADS * sink_slots
    o_sums = part * 2 * size + (s * KV_HEADS + kv_head) * sink_slots + block * BLOCK_N
    p_sums += (o_sums + tl.arange(0, BLOCK_N))[:, None] * BLOCK_D + columns[None, :]
    tl.store(p_sums, acc_k)
    tl.store(p_sums + size * BLOCK_D, acc_v)


@triton.jit(do_not_specialize=LENGTHS)
def lows_kernel(
    p_left, p_lows, stride_left, p_cu_q, sequences, batch, queries, BLOCK_M: tl.constexpr
) -> None:
    """Smallest declared left of each tile of rows."""
    slot = tl.program_id(0)
    if p_cu_q is not None:
        s, row = tile_of_slot(p_cu_q, slot, sequences, BLOCK_M)
        token, count = span(p_cu_q, s, sequences, queries)
    else:
        tiles = tl.cdiv(queries, BLOCK_M)
        p_left += (slot // tiles).to(tl.int64) * stride_left
        row = slot % tiles * BLOCK_M
        token = 0
        count = queries
    rows = row + tl.arange(0, BLOCK_M)
    lefts = tl.load(p_left + token + rows, mask=rows < count, other=NEVER)
    tl.store(p_lows + slot, tl.min(lefts).to(tl.int32))
