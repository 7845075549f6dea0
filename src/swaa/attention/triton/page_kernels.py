"""Kernels of pages chosen in decoding: statistics, scores, the best pages.

One program scores a tile of pages for one row and the query heads of one key head. Another finds
the best pages among all scores of a row and key head.
"""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda

from swaa.attention.triton.sequences import of_sequence

LENGTHS = (
    *("rows", "sequences", "capacity", "window", "sinks", "most"),
    *("q_start", "kv_start", "kv_len", "full_from", "full_until", "decode_from"),
    *("s_left", "s_table"),
)
"""Arguments whose values must not make a kernel compile again."""
LOWEST = tl.constexpr(-(2**31))
HIGHEST = tl.constexpr(2**31 - 1)


@triton.jit
def page_range(seen, window, sinks, EACH: tl.constexpr) -> tuple:
    """The pages ``[first, end)`` among which a row chooses; if full it would see ``seen`` keys."""
    unseen = (tl.maximum(seen - window, 0) + EACH - 1) // EACH
    return sinks // EACH, tl.minimum(unseen, tl.maximum(seen, 0) // EACH)


@triton.jit
def row_of_token(
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
        kv_len = of_sequence(p_kv_len, kv_len, n)
    q_start = kv_len - q_len if MISSING_Q_START else of_sequence(p_q_start, q_start, n)
    start = of_sequence(p_kv_start, kv_start, n)
    position = q_start + row
    if p_left is not None:
        full = tl.load(p_left + n * s_left + offset + row) <= start
    else:
        full = position >= of_sequence(p_full_from, full_from, n)
        full &= position < of_sequence(p_full_until, full_until, n)
    first, end = page_range(position + 1 - start, window, sinks, EACH)
    chooses = full & (position >= of_sequence(p_decode_from, decode_from, n)) & (row < q_len)
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
    n, row, offset, first, end, chooses = row_of_token(
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


@triton.jit
def _reach(order, bound) -> tl.tensor:
    """How many pages reach a bound."""
    return tl.sum((order >= bound).to(tl.int32).reshape([order.numel]), 0)


@triton.jit
def _widen(a, b, c, d) -> tuple:
    return tl.minimum(a, c), tl.maximum(b, d)


@triton.jit
def _narrow(low, high, reach, beyond, probe, count, most) -> tuple:
    """The range ``[low, high]`` of the bound once ``count`` pages are known to reach ``probe``.

    ``reach`` pages reach ``low``, ``beyond`` are above ``high``. Probes outside change nothing.
    """
    up = (count >= most) & (probe > low)
    down = (count < most) & (probe <= high)
    low = tl.where(up, probe, low)
    reach = tl.where(up, count, reach)
    high = tl.where(down, probe - 1, high)
    beyond = tl.where(down, count, beyond)
    return low, high, reach, beyond


@triton.jit
def _bound_of(order, m_p, most, slack, found, least) -> tuple:
    """A bound that ``most`` to ``most + slack`` pages reach, or the largest that more reach.

    Each round cuts the range in three, and counts at both cuts in one number.

    Args:
        order: integers in the order of the scores.
        m_p: which pages there are.
        most: how many are to be found.
        slack: how many more will do.
        found: how many reach ``least``, at least ``most``.
        least: a bound that is known to be low enough.

    Returns:
        The bound, how many reach it, and for a bound that too many reach how many are above it.
    """
    low, high = tl.reduce(
        (tl.where(m_p, order, HIGHEST).reshape([order.numel]), order.reshape([order.numel])),
        0,
        _widen,
    )
    low = tl.maximum(low, least)
    reach = found
    beyond = tl.cast(0, tl.int32)
    while (reach > most + slack) & (low < high):
        third = ((high - low).to(tl.uint32, bitcast=True) // 3).to(tl.int32, bitcast=True)
        first = low + third + 1
        second = low + 2 * third + 1
        both = (order >= first).to(tl.int32) + ((order >= second).to(tl.int32) << 16)
        both = tl.sum(both.reshape([order.numel]), 0)
        some, fewer = both & 0xFFFF, (both >> 16) & 0xFFFF
        low, high, reach, beyond = _narrow(low, high, reach, beyond, first, some, most)
        low, high, reach, beyond = _narrow(low, high, reach, beyond, second, fewer, most)
    return low, reach, beyond


@triton.jit
def _best_of(order, m_p, page, most, found, least, BLOCK_P: tl.constexpr) -> tl.tensor:
    """Which are the ``most`` best pages; of equally good ones the first are."""
    bound, reach, beyond = _bound_of(order, m_p, most, 0, found, least)
    limit = tl.cast(BLOCK_P, tl.int32)
    if reach != most:  # of the pages at the bound only some are free, those before `limit`
        free = most - beyond
        ties = (order == bound) & m_p
        limit = tl.cast(0, tl.int32)
        step = tl.cast(BLOCK_P // 2, tl.int32)
        while step > 0:
            before = (ties & (page < limit + step)).to(tl.int32)
            limit = tl.where(tl.sum(before.reshape([page.numel]), 0) <= free, limit + step, limit)
            step //= 2
    return m_p & ((order > bound) | ((order == bound) & (page < limit)))


@triton.jit
def _ones(word) -> tl.tensor:
    """How many bits are set."""
    word = word.to(tl.uint32, bitcast=True)
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32, bitcast=True)


@triton.jit
def _places(taken, BLOCK_P: tl.constexpr) -> tl.tensor:
    """The place of each taken page among them: pages in lines of 32, a word of bits each.

    Flat, because storing a matrix would first move its pointers to other threads.
    """
    one = taken.to(tl.int32)
    column = tl.arange(0, 32)[None, :]
    word = tl.sum(one << column, 1)
    along = _ones(word[:, None] & ((1 << column) - 1))
    whole = _ones(word)
    before = tl.cumsum(whole, 0) - whole
    return (along + before[:, None]).reshape([BLOCK_P])


@triton.jit(do_not_specialize=[*LENGTHS, "first_token"])
def choose_kernel(
    p_scores,
    p_pages,
    p_spare,
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
    GROUPS: tl.constexpr,
    ROOM: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Write the numbers of the ``most`` best pages of one row and key head, in rising order.

    The bound is first looked for among the best of each of ``GROUPS`` groups of pages. At least
    ``most`` pages reach what ``most`` groups reach, and mostly few more: these are gathered in
    ``p_spare``, ``[tokens, kv_heads, 2, ROOM]``, and the rest of the search is among them alone.
    Where they are too many, as under many equal scores, it is among all.
    """
    kv_head = tl.program_id(0)
    index = tl.program_id(1)
    token = first_token + index
    _, _, _, first, end, chooses = row_of_token(
        *(token, p_cu_q, p_cu_k, p_left, s_left, p_q_start, q_start, p_kv_start, kv_start),
        *(p_kv_len, kv_len, p_full_from, full_from, p_full_until, full_until, p_decode_from),
        *(decode_from, rows, sequences, window, sinks, most, SEQUENCES, MISSING_Q_START, EACH),
    )
    if OVERLAP:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()  # for the scores
    if not chooses:
        return
    page = tl.arange(0, BLOCK_P // 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    m_p = (page >= first) & (page < end)
    o_head = (index * KV_HEADS + kv_head).to(tl.int64)
    scores = tl.load(p_scores + o_head * capacity + page, mask=m_p, other=0.0)
    p_pages += (token * KV_HEADS + kv_head).to(tl.int64) * most
    p_spare += o_head * (2 * ROOM)
    # Integers in the order of the scores; pages that are not candidates come last.
    bits = scores.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    order = tl.where(m_p, order, LOWEST)
    found, least = end - first, tl.cast(LOWEST, tl.int32)
    best = tl.max(order.reshape([BLOCK_P // GROUPS, GROUPS]), 0)
    groups = tl.sum((best > LOWEST).to(tl.int32), 0)
    if groups >= most:
        least, _, _ = _bound_of(best, best > LOWEST, most, most // 4, groups, LOWEST)
        found = _reach(order, least)
    if found <= ROOM:
        kept = m_p & (order >= least)
        place, m_kept = _places(kept, BLOCK_P), kept.reshape([BLOCK_P])
        tl.store(p_spare + place, order.reshape([BLOCK_P]), mask=m_kept)
        tl.store(p_spare + ROOM + place, tl.arange(0, BLOCK_P), mask=m_kept)
        tl.debug_barrier()  # every thread of the program sees what the others wrote
        i = tl.arange(0, ROOM)
        few = tl.load(p_spare + i, mask=i < found, other=LOWEST)
        number = tl.load(p_spare + ROOM + i, mask=i < found, other=0)
        taken = _best_of(few, i < found, i, most, found, LOWEST, ROOM)
        tl.store(p_pages + tl.cumsum(taken.to(tl.int32), 0) - 1, number, mask=taken)
    else:
        chosen = _best_of(order, m_p, page, most, found, least, BLOCK_P)
        place = _places(chosen, BLOCK_P)
        tl.store(p_pages + place, tl.arange(0, BLOCK_P), mask=chosen.reshape([BLOCK_P]))


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
    start = of_sequence(p_kv_start, kv_start, n)
    before = tl.maximum(of_sequence(p_first, first, n) - start, 0)
    page = before // EACH + tl.program_id(0)
    complete = tl.maximum(of_sequence(p_end, end, n) - start, 0) // EACH
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
