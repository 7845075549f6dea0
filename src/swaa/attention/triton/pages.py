"""Pages chosen in decoding: their statistics, their scores, the best of them.

One program scores a tile of pages for one row and the query heads of one key head. Another finds,
bit by bit, the score of the last page to be chosen, and writes the numbers of the pages above it.
Grid and tiles follow from shapes alone and positions are read on the device, so a captured CUDA
graph stays exact while the cache grows.
"""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from swaa.attention.call import AttentionCall
from swaa.attention.mask import Position
from swaa.attention.pages import PAGE, most_pages
from swaa.attention.triton.sequences import NEVER, can_overlap

MOST_CAPACITY = 1 << 16
"""Most pages of a sequence: one program looks at the scores of all of them."""
SCORE_BYTES = 256 << 20
"""Most bytes of scores at once; rows beyond it are processed in turns."""
TILE_BYTES = 1 << 15
"""Most bytes of means that a program reads: 64 pages of 512 bytes, or fewer larger ones."""
SCORE_WARPS = 4
"""Warps of a program that scores pages."""
PAGES_OF_A_WARP = 512
"""Scores that a warp compares, where pages are chosen among many."""
LENGTHS = (
    *("rows", "sequences", "capacity", "window", "sinks", "most"),
    *("q_start", "kv_start", "kv_len", "full_from", "full_until", "decode_from"),
    *("s_left", "s_table"),
)
"""Arguments whose values must not make a kernel compile again."""


def refusal(call: AttentionCall) -> str | None:
    """Why these kernels cannot choose the call's pages, or None."""
    if _capacity(call) > MOST_CAPACITY:
        return f"decode_keys are chosen among at most {MOST_CAPACITY * PAGE:,} keys"
    return None


def statistics_of(call: AttentionCall) -> Tensor:
    """Statistics of every page of a call that has none; see ``swaa.attention.pages``."""
    kv_heads, head_dim = call.k.shape[2:]
    if call.paged:
        blocks, size = call.k.shape[:2]
        shape, new = (blocks, size // PAGE), size
    else:
        shape, new = (len(call.k), call.k.shape[1] // PAGE), call.k.shape[1]
    statistics = call.k.new_zeros(*shape, kv_heads, 2, head_dim)
    start = 0 if call.paged else call.kv_start
    summarise(call.k, statistics, first=start, end=call.k.shape[1], kv_start=start, new=new)
    return statistics


def summarise(
    keys: Tensor,
    statistics: Tensor,
    *,
    first: Position,
    end: Position,
    new: int,
    kv_start: Position = 0,
    block_table: Tensor | None = None,
) -> None:
    """Write the statistics of the pages that new keys complete.

    Args:
        keys: ``[batch, slots, kv_heads, head_dim]``, or a cache's pages.
        statistics: ``[batch, pages, kv_heads, 2, head_dim]``, or by the cache's pages.
        first: slot of the first new key, an int or int32 ``[sequences]``.
        end: slot after the last one, likewise.
        new: the most new keys of a sequence.
        kv_start: slot of the first real key, likewise.
        block_table: int32 ``[sequences, pages]``; None: ``keys`` are by sequence.
    """
    sequences = len(keys) if block_table is None else len(block_table)
    head_dim = keys.shape[3]
    summarise_kernel[(triton.cdiv(new, PAGE), keys.shape[2], sequences)](
        keys,
        statistics,
        block_table,
        *_number(first),
        *_number(end),
        *_number(kv_start),
        *keys.stride()[:3],
        *statistics.stride()[:4],
        0 if block_table is None else block_table.stride(0),
        capacity=statistics.shape[1] * (1 if block_table is None else block_table.shape[1]),
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        SIZE=0 if block_table is None else keys.shape[1],
        EACH=PAGE,
        OVERLAP=can_overlap(keys.device),
        num_warps=1,
    )


def choose(call: AttentionCall) -> Tensor:
    """The pages that each row chooses, in rising order.

    Args:
        call: dense, packed or paged.

    Returns:
        int32 ``[batch * queries, kv_heads, most]``; undefined for rows that do not choose.
    """
    kv_heads, most, tokens = call.k.shape[2], most_pages(call), call.q.shape[0] * call.q.shape[1]
    pages = torch.empty(tokens, kv_heads, most, dtype=torch.int32, device=call.q.device)
    capacity = _capacity(call)
    step = max(1, min(tokens, SCORE_BYTES // (4 * kv_heads * max(1, capacity))))
    scores = torch.empty(step, kv_heads, capacity, dtype=torch.float32, device=call.q.device)
    arguments = _arguments(call, capacity)
    statistics = statistics_of(call) if call.page_statistics is None else call.page_statistics
    for first in range(0, tokens, step):
        count = min(step, tokens - first)
        _choose_rows(call, arguments, statistics, scores, pages, first, count)
    return pages


def _choose_rows(
    call: AttentionCall,
    arguments: dict[str, Any],
    statistics: Tensor,
    scores: Tensor,
    pages: Tensor,
    first: int,
    count: int,
) -> None:
    kv_heads, head_dim, capacity = call.k.shape[2], call.q.shape[3], scores.shape[2]
    group, block_d = call.q.shape[2] // kv_heads, triton.next_power_of_2(head_dim)
    overlap = can_overlap(call.q.device)
    each = max(16, min(64, TILE_BYTES // (block_d * call.q.element_size())))
    score_kernel[(kv_heads * triton.cdiv(capacity, each), count)](
        call.q,
        statistics,
        scores,
        call.block_table,
        first,
        *call.q.stride()[:3],
        *statistics.stride()[:4],
        0 if call.block_table is None else call.block_table.stride(0),
        **arguments,
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_G=max(16, triton.next_power_of_2(group)),
        BLOCK_D=block_d,
        BLOCK_P=each,
        IN_BLOCK=call.k.shape[1] // PAGE if call.paged else 0,
        OVERLAP=overlap,
        num_warps=SCORE_WARPS,
        **({"launch_pdl": True} if overlap else {}),
    )
    block = max(64, triton.next_power_of_2(capacity))
    choose_kernel[(kv_heads, count)](
        scores,
        pages,
        first,
        **arguments,
        KV_HEADS=kv_heads,
        BLOCK_P=block,
        LINE=32,
        OVERLAP=overlap,
        num_warps=min(16, max(4, block // PAGES_OF_A_WARP)),
        **({"launch_pdl": True} if overlap else {}),
    )


def _capacity(call: AttentionCall) -> int:
    """Most pages of a sequence."""
    slots = call.k.shape[1] * (call.block_table.shape[1] if call.block_table is not None else 1)
    return slots // PAGE


def _arguments(call: AttentionCall, capacity: int) -> dict[str, Any]:
    """Arguments of every kernel that say where a row is and whether it chooses."""
    left, packed = call.left, call.cu_seqlens_q is not None
    sequences = len(call.cu_seqlens_q) - 1 if call.cu_seqlens_q is not None else 1
    numbers = {
        "q_start": _number(call.q_start),
        "kv_start": _number(call.kv_start),
        "kv_len": _number(call.kv_lens, call.k.shape[1]),
        "full_from": _number(call.full_from, NEVER.value),
        "full_until": _number(call.full_until, NEVER.value),
        "decode_from": _number(call.decode_from),
    }
    return {
        "p_cu_q": call.cu_seqlens_q,
        "p_cu_k": call.cu_seqlens_k,
        "p_left": left,
        "s_left": 0 if left is None or left.shape[0] == 1 else left.stride(0),
        **{f"p_{name}": pointer for name, (pointer, _) in numbers.items()},
        **{name: scalar for name, (_, scalar) in numbers.items()},
        "rows": call.q.shape[1],
        "sequences": sequences,
        "capacity": capacity,
        "window": call.window,
        "sinks": call.sink_tokens,
        "most": most_pages(call),
        "SEQUENCES": triton.next_power_of_2(sequences) if packed else 0,
        "MISSING_Q_START": call.q_start is None,
        "EACH": PAGE,
    }


def _number(value: Position | None, default: int = 0) -> tuple[Tensor | None, int]:
    """A per-sequence number as the pointer and the scalar that a kernel takes."""
    if isinstance(value, Tensor):
        return value.contiguous(), 0
    return None, default if value is None else min(value, NEVER.value)


@triton.jit
def _of(p_number, number, n) -> tl.tensor:
    if p_number is not None:
        return tl.load(p_number + n).to(tl.int32)
    else:  # noqa: RET505 (a compile-time branch)
        return number


@triton.jit
def page_range(seen, window, sinks, EACH: tl.constexpr) -> tuple:
    """The pages ``[first, end)`` among which a row chooses; if full it would see ``seen`` keys."""
    unseen = (tl.maximum(seen - window, 0) + EACH - 1) // EACH
    return sinks // EACH, tl.minimum(unseen, tl.maximum(seen, 0) // EACH)


@triton.jit
def _row_of_token(
    token,
    p_cu_q,
    p_cu_k,
    p_left,
    s_left,
    p_q_start,
    q_start,
    p_kv_start,
    kv_start,
    p_kv_len,
    kv_len,
    p_full_from,
    full_from,
    p_full_until,
    full_until,
    p_decode_from,
    decode_from,
    rows,
    sequences,
    window,
    sinks,
    most,
    SEQUENCES: tl.constexpr,
    MISSING_Q_START: tl.constexpr,
    EACH: tl.constexpr,
) -> tuple:
    """Sequence, row, packed offset, first and end page, and whether the row chooses among them."""
    if SEQUENCES > 0:
        o_n = tl.arange(0, SEQUENCES)
        begun = tl.load(p_cu_q + o_n, mask=o_n < sequences, other=0).to(tl.int32)
        n = tl.sum(((begun <= token) & (o_n < sequences)).to(tl.int32), 0) - 1
        offset = tl.load(p_cu_q + n).to(tl.int32)
        q_len = tl.load(p_cu_q + n + 1).to(tl.int32) - offset
        row = token - offset
    else:
        n = token // rows
        offset = 0
        q_len = rows
        row = token % rows
    if p_cu_k is not None:
        kv_len = tl.load(p_cu_k + n + 1).to(tl.int32) - tl.load(p_cu_k + n).to(tl.int32)
    else:
        kv_len = _of(p_kv_len, kv_len, n)
    q_start = kv_len - q_len if MISSING_Q_START else _of(p_q_start, q_start, n)
    start = _of(p_kv_start, kv_start, n)
    position = q_start + row
    if p_left is not None:
        full = tl.load(p_left + n * s_left + offset + row) <= start
    else:
        full = position >= _of(p_full_from, full_from, n)
        full &= position < _of(p_full_until, full_until, n)
    first, end = page_range(position + 1 - start, window, sinks, EACH)
    chooses = full & (position >= _of(p_decode_from, decode_from, n)) & (row < q_len)
    return n, row, offset, first, end, chooses & (end - first > most)


@triton.jit(do_not_specialize=[*LENGTHS, "first_token"])
def score_kernel(
    p_q,
    p_statistics,
    p_scores,
    p_table,
    first_token,
    s_qb,
    s_qt,
    s_qh,
    s_b,
    s_p,
    s_h,
    s_kind,
    s_table,
    p_cu_q,
    p_cu_k,
    p_left,
    s_left,
    p_q_start,
    q_start,
    p_kv_start,
    kv_start,
    p_kv_len,
    kv_len,
    p_full_from,
    full_from,
    p_full_until,
    full_until,
    p_decode_from,
    decode_from,
    rows,
    sequences,
    capacity,
    window,
    sinks,
    most,
    SEQUENCES: tl.constexpr,
    MISSING_Q_START: tl.constexpr,
    EACH: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    IN_BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Score a tile of pages for one row: the largest score of the query heads."""
    if OVERLAP:
        cuda.gdc_wait()  # for queries and statistics
        cuda.gdc_launch_dependents()
    # Heads first: programs close in time read keys close in memory.
    kv_head = tl.program_id(0) % KV_HEADS
    tile = tl.program_id(0) // KV_HEADS
    index = tl.program_id(1)
    token = first_token + index
    n, row, offset, first, end, chooses = _row_of_token(
        *(token, p_cu_q, p_cu_k, p_left, s_left, p_q_start, q_start, p_kv_start, kv_start),
        *(p_kv_len, kv_len, p_full_from, full_from, p_full_until, full_until, p_decode_from),
        *(decode_from, rows, sequences, window, sinks, most, SEQUENCES, MISSING_Q_START, EACH),
    )
    page = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = (page >= first) & (page < end)
    if not chooses or tile * BLOCK_P >= end or (tile + 1) * BLOCK_P <= first:
        return
    o_g = tl.arange(0, BLOCK_G)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < HEAD_DIM
    m_g = o_g < GROUP
    if SEQUENCES > 0:
        p_q += (offset + row).to(tl.int64) * s_qt
    else:
        p_q += n.to(tl.int64) * s_qb + row.to(tl.int64) * s_qt
    o_q = (kv_head * GROUP + o_g)[:, None] * s_qh + o_d[None, :]
    q = tl.load(p_q + o_q, mask=m_g[:, None] & m_d[None, :], other=0.0)
    if IN_BLOCK > 0:
        block = tl.load(p_table + n * s_table + page // IN_BLOCK, mask=m_p, other=0)
        o_p = block.to(tl.int64) * s_b + (page % IN_BLOCK) * s_p
    else:
        o_p = n.to(tl.int64) * s_b + page.to(tl.int64) * s_p
    p_tile = p_statistics + (o_p + kv_head * s_h)[:, None] + o_d[None, :]
    m_pd = m_p[:, None] & m_d[None, :]
    mean = tl.load(p_tile, mask=m_pd, other=0.0)
    std = tl.load(p_tile + s_kind, mask=m_pd, other=0.0)
    scores = tl.dot(q, tl.trans(mean), input_precision="ieee")  # [BLOCK_G, BLOCK_P]
    scores = tl.dot(tl.abs(q), tl.trans(std), scores, input_precision="ieee")
    best = tl.max(tl.where(m_g[:, None], scores, float("-inf")), 0)
    p_scores += (index * KV_HEADS + kv_head).to(tl.int64) * capacity
    tl.store(p_scores + page, best, mask=m_p)


@triton.jit(do_not_specialize=[*LENGTHS, "first_token"])
def choose_kernel(
    p_scores,
    p_pages,
    first_token,
    p_cu_q,
    p_cu_k,
    p_left,
    s_left,
    p_q_start,
    q_start,
    p_kv_start,
    kv_start,
    p_kv_len,
    kv_len,
    p_full_from,
    full_from,
    p_full_until,
    full_until,
    p_decode_from,
    decode_from,
    rows,
    sequences,
    capacity,
    window,
    sinks,
    most,
    SEQUENCES: tl.constexpr,
    MISSING_Q_START: tl.constexpr,
    EACH: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    LINE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Write the numbers of the ``most`` best pages of one row and key head, in rising order."""
    kv_head = tl.program_id(0)
    index = tl.program_id(1)
    token = first_token + index
    _, _, _, first, end, chooses = _row_of_token(
        *(token, p_cu_q, p_cu_k, p_left, s_left, p_q_start, q_start, p_kv_start, kv_start),
        *(p_kv_len, kv_len, p_full_from, full_from, p_full_until, full_until, p_decode_from),
        *(decode_from, rows, sequences, window, sinks, most, SEQUENCES, MISSING_Q_START, EACH),
    )
    if OVERLAP:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()  # for the scores
    if not chooses:
        return
    # In lines of one warp's width: sums along a line need no other warp.
    line = tl.arange(0, BLOCK_P // LINE)
    page = line[:, None] * LINE + tl.arange(0, LINE)[None, :]
    m_p = (page >= first) & (page < end)
    p_scores += (index * KV_HEADS + kv_head).to(tl.int64) * capacity
    scores = tl.load(p_scores + page, mask=m_p, other=0.0)
    # Integers in the order of the scores; pages that are not candidates come last.
    bits = scores.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    order = tl.where(m_p, order, -(2**31))
    # The largest bound that `most` pages reach, built from its highest bit down.
    bound = tl.where(tl.sum((order >= 0).to(tl.int32)) >= most, 0, -(2**31))
    for n in tl.range(0, 31):
        higher = bound + (1 << (30 - n))
        bound = tl.where(tl.sum((order >= higher).to(tl.int32)) >= most, higher, bound)
    # Of the pages at the bound the first ones are chosen, as many as are free. Both kinds are
    # counted in one number, along each line and over the lines before it.
    above = (order > bound).to(tl.int32)
    ties = ((order == bound) & m_p).to(tl.int32)
    both = above + (ties << 16)
    along = tl.cumsum(both, 1)
    whole = tl.sum(both, 1)
    whole = (whole & 0xFFFF).to(tl.int64) + ((whole >> 16).to(tl.int64) << 32)
    before = tl.cumsum(whole, 0) - whole
    free = most - (tl.sum(whole, 0) & 0x7FFFFFFF).to(tl.int32)
    place = (along & 0xFFFF) + (before & 0x7FFFFFFF).to(tl.int32)[:, None]
    rank = (along >> 16) + (before >> 32).to(tl.int32)[:, None]  # among the ties, from 1
    chosen = (above > 0) | ((ties > 0) & (rank <= free))
    place += tl.minimum(rank, free) - 1
    p_pages += (token * KV_HEADS + kv_head).to(tl.int64) * most
    tl.store(p_pages + place, page, mask=chosen)


@triton.jit(do_not_specialize=["capacity", "first", "end", "kv_start", "s_table"])
def summarise_kernel(
    p_k,
    p_statistics,
    p_table,
    p_first,
    first,
    p_end,
    end,
    p_kv_start,
    kv_start,
    s_kb,
    s_kt,
    s_kh,
    s_b,
    s_p,
    s_h,
    s_kind,
    s_table,
    capacity,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SIZE: tl.constexpr,
    EACH: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Mean and standard deviation of one page, if new keys completed it."""
    if OVERLAP:
        cuda.gdc_launch_dependents()
    kv_head = tl.program_id(1)
    n = tl.program_id(2)
    start = _of(p_kv_start, kv_start, n)
    before = tl.maximum(_of(p_first, first, n) - start, 0)
    page = before // EACH + tl.program_id(0)
    complete = tl.maximum(_of(p_end, end, n) - start, 0) // EACH
    if page >= tl.minimum(complete, capacity):
        return
    o_d = tl.arange(0, BLOCK_D)
    key = start + page * EACH + tl.arange(0, EACH)
    if SIZE > 0:  # each page of the cache holds a whole number of our pages
        block = tl.load(p_table + n * s_table + page * EACH // SIZE)
        o_k = block.to(tl.int64) * s_kb + (key % SIZE) * s_kt
        o_out = block.to(tl.int64) * s_b + (page % (SIZE // EACH)) * s_p
    else:
        o_k = n.to(tl.int64) * s_kb + key.to(tl.int64) * s_kt
        o_out = n.to(tl.int64) * s_b + page.to(tl.int64) * s_p
    m_d = o_d < HEAD_DIM
    p_tile = p_k + (o_k + kv_head * s_kh)[:, None] + o_d[None, :]
    k = tl.load(p_tile, mask=m_d[None, :], other=0.0).to(tl.float32)  # [EACH, D]
    mean = tl.sum(k, 0) / EACH
    away = k - mean[None, :]
    std = tl.sqrt(tl.sum(away * away, 0) / EACH)
    p_out = p_statistics + o_out + kv_head * s_h + o_d
    tl.store(p_out, mean.to(p_statistics.dtype.element_ty), mask=m_d)
    tl.store(p_out + s_kind, std.to(p_statistics.dtype.element_ty), mask=m_d)
