"""Decode and paged attention: few query rows, keys split over the GPU, pages followed in place.

A program's tile packs query rows with all query heads of one key/value head. The program reads its
share of the key blocks that the tile sees: the sinks, then everything from the leftmost visible key
on. A second kernel merges the shares. Grid and splits follow from shapes alone and every length is
read on the device, so a captured CUDA graph stays exact while the cache grows.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (a constexpr parameter takes an int, and a launch takes num_warps: triton's types say neither)

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.language.extra import cuda

from swaa.attention.call import FP8, AttentionCall, AttentionOutput
from swaa.attention.mask import Position
from swaa.attention.pages import PAGE, most_pages
from swaa.attention.triton import pages
from swaa.attention.triton.page_kernels import page_range
from swaa.attention.triton.sequences import can_overlap, of_sequence, soften

NEVER = 2**31 - 1
"""A position that no row reaches."""
LAST = tl.constexpr(NEVER)
LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SPLIT_KEYS = 8192
"""Keys per split of long rows, so that one long sequence does not delay the others."""
ROOMY_BYTES = 128 << 10
"""Shared memory per program (bytes) from which tiles are large: data-centre GPUs have it."""
WORKSPACE_BYTES = 128 << 20
"""Most bytes of unmerged partial outputs."""
LENGTHS = (
    *("rows", "tokens", "sequences", "capacity", "splits", "min_blocks", "window", "sinks"),
    *("q_start", "kv_start", "kv_len", "full_from", "full_until", "s_left", "s_table"),
    "decode_from",
)


def refusal(call: AttentionCall) -> str | None:
    """Why the decode kernel cannot serve the call, or None when it can."""
    if call.q.dtype not in DTYPES:
        return f"dtype {call.q.dtype} is none of float16, bfloat16, float32"
    if not call.q.is_cuda and not knobs.runtime.interpret:
        return f"needs a GPU, got tensors on {call.q.device}"
    if call.k.shape[3] != call.v.shape[3]:
        return f"head_dim of k is {call.k.shape[3]} and of v {call.v.shape[3]}; they must agree"
    if not 16 <= call.q.shape[3] <= 256:
        return f"head_dim is {call.q.shape[3]}; the decode kernel takes 16 to 256"
    if any(x.stride(3) != 1 for x in (call.q, call.k, call.v)):
        return "the channels of a head must lie side by side (stride 1)"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (call.q, call.k, call.v)):
        return "the decode kernel has no backward"
    if call.k.dtype == FP8 and not _reads_fp8(call.q.device):
        return f"keys of {FP8} need an NVIDIA GPU of compute capability 8.9 or more"
    return pages.refusal(call) if call.decode_keys else None


def attend(call: AttentionCall, chosen: Tensor | None = None) -> AttentionOutput:
    """Attention of few rows, or of any rows over pages; ``lse`` included.

    Args:
        call: may have ``decode_keys``.
        chosen: the pages to read, as :func:`swaa.attention.triton.pages.choose` returns them; None:
            those that fit best.
    """
    q = call.q
    batch, rows, heads, head_dim = q.shape
    output = torch.empty((batch, rows, heads, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, rows), dtype=torch.float32, device=q.device)
    if output.numel() == 0:
        return AttentionOutput(output, lse)
    if call.cu_seqlens_q is not None and len(call.cu_seqlens_q) == 1:  # packed, but no sequences
        return AttentionOutput(output.zero_(), lse.fill_(float("-inf")))
    plan = plan_tiles(call)
    parts = None
    if plan.splits > 1:
        # Before pages are chosen: the kernel of the splits starts while the choice still runs, so
        # it must not write to memory that the choice has given back.
        shape = (plan.splits, batch * rows, heads)
        parts = Parts(
            torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device),
            torch.empty(shape, dtype=torch.float32, device=q.device),
            torch.empty(shape, dtype=torch.float32, device=q.device),
        )
    if call.decode_keys and chosen is None:
        chosen = pages.choose(call)
    _launch(call, plan, output, lse, parts, chosen)
    if parts is None:
        return AttentionOutput(output, lse)
    overlap = can_overlap(q.device)
    _merge[(batch * rows, heads)](
        *parts,
        output,
        lse,
        rows,
        plan.splits,
        HEADS=heads,
        HEAD_DIM=head_dim,
        BLOCK_D=_round_up(head_dim),
        BLOCK_S=32,
        OVERLAP=overlap,
        **({"launch_pdl": True} if overlap else {}),
    )
    return AttentionOutput(output, lse)


class Parts(NamedTuple):
    """Results of the splits, for the merge: ``[splits, batch * rows, heads(, head_dim)]``.

    Sums and maxima are kept apart, not folded into a log-sum-exp, so that merging loses nothing by
    rounding.
    """

    sums: Tensor
    tops: Tensor
    totals: Tensor


class Plan(NamedTuple):
    """How a call is cut: decided from shapes only, never from the contents of a tensor.

    ``rows`` query rows times the query heads of a group make the ``block_m`` rows of a tile;
    ``min_blocks`` is the smallest number of key blocks worth a split.
    """

    block_m: int
    block_n: int
    rows: int
    tiles: int
    splits: int
    min_blocks: int
    warps: int
    stages: int


def plan_tiles(call: AttentionCall) -> Plan:
    """Tile sizes and splits of a call."""
    batch, tokens, heads, head_dim = call.q.shape
    kv_heads = call.k.shape[2]
    group = heads // kv_heads
    sequences = batch if call.cu_seqlens_q is None else len(call.cu_seqlens_q) - 1
    rows_each = tokens if call.cu_seqlens_q is None else -(-tokens // max(1, sequences))
    block_d = _round_up(head_dim)
    roomy = _shared_bytes(call.q.device) >= ROOMY_BYTES
    most = 128 if roomy and block_d <= 128 and call.q.element_size() == 2 else 64
    if not roomy and block_d * call.q.element_size() > 512:
        most = 32  # query rows of 1 KiB: 64 of them would leave no room for keys
    invariant = batch_invariant()
    if invariant:
        most = 16  # one tile shape, whatever other rows are in the batch
    block_m = max(16, _round_up(group), min(most, _round_up(rows_each * group)))
    if call.decode_keys:  # each row reads its own pages
        block_m = max(16, _round_up(group))
    rows = 1 if call.decode_keys else max(1, block_m // group)
    if call.cu_seqlens_q is None:
        tiles = busy_tiles = batch * -(-tokens // rows)
    else:  # sequence n begins at tile cu[n] // rows + n, so some tiles are empty
        tiles = tokens // rows + sequences
        busy_tiles = min(tokens, tiles)
    # A tile of keys has 16 KiB: three stages of keys and values leave room for two programs per SM.
    block_n = max(16, min(128, 16384 // (block_d * call.q.element_size())))
    keys = _most_keys(call, rows)
    programs, slots = busy_tiles * kv_heads, 2 * _multiprocessors(call.q.device)
    splits = max(1, slots // programs)
    if block_m < most or tokens <= most:
        splits = max(splits, -(-keys // SPLIT_KEYS))
    splits = min(splits, WORKSPACE_BYTES // (4 * batch * tokens * heads * (head_dim + 2)))
    splits = 1 if invariant else max(1, min(splits, -(-keys // (2 * block_n)), 128))
    return Plan(
        block_m=block_m,
        block_n=block_n,
        rows=rows,
        tiles=tiles,
        splits=splits,
        min_blocks=2 if programs * splits <= slots else 8,
        warps=8 if block_m >= 128 else 4,
        stages=3 if roomy else 2,
    )


def batch_invariant() -> bool:
    """Whether a row's bits must not depend on its batch: one tile shape, no splits, far slower.

    This is vLLM's switch, and it holds for all attention kernels of a process: its promise for a
    server would fail if one kernel ignored it.
    """
    return os.environ.get("VLLM_BATCH_INVARIANT", "0") not in ("", "0")


def _most_keys(call: AttentionCall, rows: int) -> int:
    """Most keys that a tile of ``rows`` can see, as far as shapes and integers show."""
    keys = call.k.shape[1]
    if call.block_table is not None:
        keys *= call.block_table.shape[1]
    if call.window is None or call.full_from is not None or call.left is not None:
        return keys
    return min(keys, call.window + rows - 1 + call.sink_tokens)


def _round_up(count: int) -> int:
    """The next power of two."""
    return 1 << max(0, count - 1).bit_length()


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # the interpreter: enough for splits to be exercised
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may take: 227 KiB on Hopper, 99 KiB on consumer GPUs."""
    if device.type != "cuda":
        return ROOMY_BYTES
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 0)


@functools.cache
def _reads_fp8(device: torch.device) -> bool:
    if device.type != "cuda":
        return True  # the interpreter
    return not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 9)


def _launch(
    call: AttentionCall,
    plan: Plan,
    output: Tensor,
    lse: Tensor,
    parts: Parts | None,
    chosen: Tensor | None,
) -> None:
    q, k, v, table, left = call.q, call.k, call.v, call.block_table, call.left
    heads, kv_heads = q.shape[2], k.shape[2]
    full_from = 0 if call.window is None else call.full_from
    waits = chosen is not None and can_overlap(q.device)
    numbers = {
        "q_start": _number(call.q_start, 0),
        "kv_start": _number(call.kv_start, 0),
        "kv_len": _number(call.kv_lens, k.shape[1]),
        "full_from": _number(full_from, NEVER),
        "full_until": _number(None if call.window is None else call.full_until, NEVER),
        "decode_from": _number(call.decode_from, 0),
    }
    pointers = {f"p_{name}": pointer for name, (pointer, _) in numbers.items()}
    scalars = {name: scalar for name, (_, scalar) in numbers.items()}
    _decode[(kv_heads * plan.splits, plan.tiles)](
        q,
        k,
        v,
        output,
        lse,
        *(parts or (None, None, None)),
        p_table=table,
        p_cu_q=call.cu_seqlens_q,
        p_cu_k=call.cu_seqlens_k,
        p_left=left,
        p_chosen=chosen,
        **pointers,
        s_qb=q.stride(0),
        s_qt=q.stride(1),
        s_qh=q.stride(2),
        s_kb=k.stride(0),
        s_kt=k.stride(1),
        s_kh=k.stride(2),
        s_vb=v.stride(0),
        s_vt=v.stride(1),
        s_vh=v.stride(2),
        s_table=0 if table is None else table.stride(0),
        s_left=0 if left is None or left.shape[0] == 1 else left.stride(0),
        **scalars,
        rows=q.shape[1],
        sequences=1 if call.cu_seqlens_q is None else len(call.cu_seqlens_q) - 1,
        tokens=q.shape[0] * q.shape[1],
        capacity=k.shape[1] * (1 if table is None else table.shape[1]),
        splits=plan.splits,
        min_blocks=plan.min_blocks,
        window=call.window or 1,
        sinks=call.sink_tokens,
        scale=call.scale * LOG2_E,
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        ROWS=plan.rows,
        CHOSEN=most_pages(call),
        EACH=PAGE,
        HEAD_DIM=q.shape[3],
        PAGE=0 if table is None else k.shape[1],
        PACKED_KEYS=call.cu_seqlens_k is not None,
        MISSING_Q_START=call.q_start is None,
        SEQUENCES=0 if call.cu_seqlens_q is None else _round_up(len(call.cu_seqlens_q) - 1),
        BLOCK_M=plan.block_m,
        BLOCK_N=plan.block_n,
        BLOCK_D=_round_up(q.shape[3]),
        OVERLAP=parts is not None and can_overlap(q.device),
        WAIT=waits,
        num_warps=plan.warps,
        num_stages=plan.stages,
        **({"launch_pdl": True} if waits else {}),
    )


def _number(value: Position | None, default: int) -> tuple[Tensor | None, int]:
    """A per-sequence number as the pointer and the scalar that the kernel takes."""
    if isinstance(value, Tensor):
        return value.contiguous(), 0
    return None, default if value is None else min(value, NEVER)


@triton.jit
def _sequence_of_tile(
    p_cu_q, tile, sequences, ROWS: tl.constexpr, SEQUENCES: tl.constexpr
) -> tl.tensor:
    """The sequence whose tiles include ``tile``, when sequence n's begin at cu[n] // ROWS + n."""
    o_n = tl.arange(0, SEQUENCES)
    first = tl.load(p_cu_q + o_n, mask=o_n < sequences, other=0).to(tl.int32) // ROWS + o_n
    return tl.sum(((first <= tile) & (o_n < sequences)).to(tl.int32), 0) - 1


@triton.jit
def _keys_of(block, sink_blocks, sink_block, lo_block, BLOCK_N: tl.constexpr) -> tl.tensor:
    """Positions of the keys of a block: the sinks' blocks come first, then the others."""
    start = tl.where(
        block < sink_blocks,
        sink_block + block * BLOCK_N,
        lo_block + (block - sink_blocks) * BLOCK_N,
    )
    return start + tl.arange(0, BLOCK_N)


@triton.jit
def _place_of(
    block,
    sink_blocks,
    chosen_blocks,
    sink_block,
    lo_block,
    kv_start,
    lo,
    hi,
    sink_end,
    p_chosen,
    BLOCK_N: tl.constexpr,
    CHOSEN: tl.constexpr,
    EACH: tl.constexpr,
) -> tuple:
    """Positions of the keys of a block, and which of them exist and some row of the tile sees.

    The sinks' blocks come first, then those of the chosen pages, then the others.
    """
    if p_chosen is not None:
        key = _keys_of(
            tl.where(block < sink_blocks, block, block - chosen_blocks),
            sink_blocks,
            sink_block,
            lo_block,
            BLOCK_N,
        )
        m_n = (key >= kv_start) & (key < hi) & ((key >= lo) | (key < sink_end))
        place = (block - sink_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
        by_choice = (block >= sink_blocks) & (block < sink_blocks + chosen_blocks)
        m_place = by_choice & (place < CHOSEN * EACH)
        page = tl.load(p_chosen + place // EACH, mask=m_place, other=0)
        chosen = kv_start + page * EACH + place % EACH
        # Keys of a page that are in the window or sinks are already seen there.
        m_chosen = m_place & (chosen < lo) & (chosen >= sink_end)
        return tl.where(by_choice, chosen, key), tl.where(by_choice, m_chosen, m_n), by_choice
    else:  # noqa: RET505 (a compile-time branch)
        key = _keys_of(block, sink_blocks, sink_block, lo_block, BLOCK_N)
        return key, (key >= kv_start) & (key < hi) & ((key >= lo) | (key < sink_end)), False


@triton.jit(do_not_specialize=LENGTHS)
def _decode(
    p_q,
    p_k,
    p_v,
    p_output,
    p_lse,
    p_sums,
    p_tops,
    p_totals,
    p_table,
    p_cu_q,
    p_cu_k,
    p_left,
    p_q_start,
    p_kv_start,
    p_kv_len,
    p_full_from,
    p_full_until,
    p_decode_from,
    p_chosen,
    s_qb,
    s_qt,
    s_qh,
    s_kb,
    s_kt,
    s_kh,
    s_vb,
    s_vt,
    s_vh,
    s_table,
    s_left,
    q_start,
    kv_start,
    kv_len,
    full_from,
    full_until,
    decode_from,
    rows,
    tokens,
    sequences,
    capacity,
    splits,
    min_blocks,
    window,
    sinks,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    CHOSEN: tl.constexpr,
    EACH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    PACKED_KEYS: tl.constexpr,
    MISSING_Q_START: tl.constexpr,
    SEQUENCES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
    WAIT: tl.constexpr,
) -> None:
    # Heads first: programs close in time read keys close in memory.
    kv_head = tl.program_id(0) % KV_HEADS
    split = tl.program_id(0) // KV_HEADS
    tile = tl.program_id(1)

    # Which sequence, and which of its rows.
    if SEQUENCES > 0:
        n = _sequence_of_tile(p_cu_q, tile, sequences, ROWS, SEQUENCES)
        token = tl.load(p_cu_q + n).to(tl.int32)
        q_len = tl.load(p_cu_q + n + 1).to(tl.int32) - token
        first_row = (tile - token // ROWS - n) * ROWS
        batch = 0
        # Its tiles also hold the rows after the last sequence, which see no key and become zero.
        end_row = tl.where(n == sequences - 1, tokens - token, q_len)
    else:
        per_sequence = (rows + ROWS - 1) // ROWS
        n = tile // per_sequence
        token = 0
        q_len = rows
        first_row = (tile % per_sequence) * ROWS
        batch = n
        end_row = q_len
    if first_row >= end_row:
        return
    kv_start = of_sequence(p_kv_start, kv_start, n)
    full_from = of_sequence(p_full_from, full_from, n)
    full_until = of_sequence(p_full_until, full_until, n)
    first_key = 0
    if PACKED_KEYS:
        first_key = tl.load(p_cu_k + n).to(tl.int32)
        kv_len = tl.load(p_cu_k + n + 1).to(tl.int32) - first_key
    else:
        kv_len = tl.minimum(of_sequence(p_kv_len, kv_len, n), capacity)
    q_start = kv_len - q_len if MISSING_Q_START else of_sequence(p_q_start, q_start, n)

    # Row r of head h of the group is row r * GROUP + h of the tile.
    o_m = tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    row = first_row + o_m // GROUP
    head = kv_head * GROUP + o_m % GROUP
    m_out = (o_m < ROWS * GROUP) & (row < end_row)
    m_m = m_out & (row < q_len)
    m_d = o_d < HEAD_DIM
    position = tl.where(m_m, q_start + row, -1)  # -1 sees no key
    if p_left is not None:
        left = tl.load(p_left + n * s_left + token + row, mask=m_m, other=0)
        left = left.to(tl.int32)
    else:
        full = (position >= full_from) & (position < full_until)
        left = tl.where(full, kv_start, position - window + 1)
    chooses = False
    if p_chosen is not None:  # a tile has one row
        here = q_start + first_row
        first_page, end_page = page_range(here + 1 - kv_start, window, sinks, EACH)
        chooses = (here >= of_sequence(p_decode_from, decode_from, n)) & (first_row < q_len)
        chooses &= tl.min(tl.where(m_m, left, LAST), 0) <= kv_start
        chooses &= end_page - first_page > CHOSEN
        left = tl.where(chooses, position - window + 1, left)
        out_row = (batch * rows + token + first_row).to(tl.int64)
        p_chosen += (out_row * KV_HEADS + kv_head) * CHOSEN
    o_q = batch * tl.cast(s_qb, tl.int64) + (token + row).to(tl.int64) * s_qt + head * s_qh
    q = tl.load(p_q + o_q[:, None] + o_d[None, :], mask=m_m[:, None] & m_d[None, :], other=0.0)

    # The keys that some row of the tile sees: [kv_start, sink_end) and [lo, hi).
    real = position >= kv_start
    lo = tl.maximum(tl.min(tl.where(real, left, LAST), 0), kv_start)
    hi = tl.minimum(tl.max(tl.where(real, position + 1, 0), 0), kv_len)
    sink_end = tl.minimum(kv_start + sinks, hi)
    sink_block = kv_start // BLOCK_N * BLOCK_N
    lo_block = tl.minimum(lo, hi) // BLOCK_N * BLOCK_N
    sink_blocks = tl.cdiv(tl.maximum(tl.minimum(sink_end, lo_block) - sink_block, 0), BLOCK_N)
    chosen_blocks = 0
    if p_chosen is not None:
        chosen_blocks = tl.where(chooses, (CHOSEN * EACH + BLOCK_N - 1) // BLOCK_N, 0)
    blocks = sink_blocks + chosen_blocks + tl.cdiv(tl.maximum(hi - lo_block, 0), BLOCK_N)
    # Equal shares of at least min_blocks: the last splits of a short sequence are idle.
    busy = tl.minimum(splits, tl.maximum(blocks // min_blocks, 1))
    first_block = tl.minimum(split * blocks // busy, blocks)
    end_block = tl.minimum((split + 1) * blocks // busy, blocks)
    # Until the pages are chosen, where this split or the look-up after it reads them.
    if WAIT:  # noqa: SIM102 (a compile-time branch)
        if (first_block < sink_blocks + chosen_blocks) & (end_block >= sink_blocks):
            cuda.gdc_wait()

    if PAGE == 0:
        p_k += batch * tl.cast(s_kb, tl.int64) + first_key * tl.cast(s_kt, tl.int64)
        p_v += batch * tl.cast(s_vb, tl.int64) + first_key * tl.cast(s_vt, tl.int64)
    p_k += kv_head * s_kh
    p_v += kv_head * s_vh
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if PAGE > 0 or p_chosen is not None:
        key, m_n, by_choice = _place_of(
            *(first_block, sink_blocks, chosen_blocks, sink_block, lo_block, kv_start, lo, hi),
            *(sink_end, p_chosen, BLOCK_N, CHOSEN, EACH),
        )
    if PAGE > 0:
        page = tl.load(p_table + n * s_table + key // PAGE, mask=m_n, other=0)
    for block in tl.range(first_block, end_block):
        # Keys that no row sees are not loaded: their pages may be freed, their values NaN.
        if p_chosen is None:
            key, m_n, by_choice = _place_of(
                *(block, sink_blocks, chosen_blocks, sink_block, lo_block, kv_start, lo, hi),
                *(sink_end, p_chosen, BLOCK_N, CHOSEN, EACH),
            )
        if PAGE > 0:
            o_k = page.to(tl.int64) * s_kb + (key % PAGE) * s_kt
            o_v = page.to(tl.int64) * s_vb + (key % PAGE) * s_vt
        else:
            o_k = key.to(tl.int64) * s_kt
            o_v = key.to(tl.int64) * s_vt
        if PAGE > 0 or p_chosen is not None:
            # The next block's pages are looked up now, so that no load of keys waits for them.
            ahead, m_ahead, ahead_by_choice = _place_of(
                *(block + 1, sink_blocks, chosen_blocks, sink_block, lo_block, kv_start, lo, hi),
                *(sink_end, p_chosen, BLOCK_N, CHOSEN, EACH),
            )
        if PAGE > 0:
            page = tl.load(p_table + n * s_table + ahead // PAGE, mask=m_ahead, other=0)
        m_nd = m_n[:, None] & m_d[None, :]
        k = tl.load(p_k + o_k[:, None] + o_d[None, :], mask=m_nd, other=0.0)  # [BLOCK_N, D]
        k = k.to(q.dtype)  # from fp8, exactly; else nothing
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # [BLOCK_M, BLOCK_N]
        seen = (key[None, :] >= left[:, None]) | (key < sink_end)[None, :]
        if p_chosen is not None:
            seen |= by_choice
        seen &= m_n[None, :] & (key[None, :] <= position[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        weights, top, total, decay = soften(scores, top, total, 1.0, True)
        acc *= decay[:, None]
        v = tl.load(p_v + o_v[:, None] + o_d[None, :], mask=m_nd, other=0.0).to(q.dtype)
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        if p_chosen is not None:
            key, m_n, by_choice = ahead, m_ahead, ahead_by_choice

    if OVERLAP:
        cuda.gdc_launch_dependents()  # the merge may be set up while sums are written
    out_token = (batch * rows + token + row).to(tl.int64)
    o_row = out_token * (KV_HEADS * GROUP) + head
    if p_sums is None:
        some = total > 0  # a row that saw no key gets output zero and lse -inf
        total = tl.where(some, total, 1.0)
        output = acc / total[:, None]
        o_out = o_row[:, None] * HEAD_DIM + o_d[None, :]
        m_channels = m_out[:, None] & m_d[None, :]
        tl.store(p_output + o_out, output.to(p_output.dtype.element_ty), mask=m_channels)
        lse = tl.where(some, (top + tl.log2(total)) * LN_2, float("-inf"))
        o_lse = (batch * KV_HEADS * GROUP + head) * tl.cast(rows, tl.int64) + token + row
        tl.store(p_lse + o_lse, lse, mask=m_out)
    else:
        o_row += split * tl.cast(tokens, tl.int64) * (KV_HEADS * GROUP)
        m_part = (m_m & (total > 0))[:, None] & m_d[None, :]
        tl.store(p_sums + o_row[:, None] * HEAD_DIM + o_d[None, :], acc, mask=m_part)
        tl.store(p_tops + o_row, top, mask=m_out)
        tl.store(p_totals + o_row, total, mask=m_out)


@triton.jit(do_not_specialize=["rows", "splits"])
def _merge(
    p_sums,
    p_tops,
    p_totals,
    p_output,
    p_lse,
    rows,
    splits,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    if OVERLAP:
        cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    o_row = token * HEADS + head
    s_split = tl.num_programs(0).to(tl.int64) * HEADS
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < HEAD_DIM
    top = float("-inf")
    total = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for first in tl.range(0, splits, BLOCK_S):
        o_s = first + tl.arange(0, BLOCK_S)
        o_part = o_s * s_split + o_row
        tops = tl.load(p_tops + o_part, mask=o_s < splits, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(tops, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        m_s = tops > float("-inf")  # a split that saw no key did not write its sums
        weights = tl.exp2(tops - base)
        decay = tl.exp2(top - base)
        totals = tl.load(p_totals + o_part, mask=m_s, other=0.0)
        o_sums = o_part[:, None] * HEAD_DIM + o_d[None, :]
        sums = tl.load(p_sums + o_sums, mask=m_s[:, None] & m_d[None, :], other=0.0)
        total = total * decay + tl.sum(totals * weights, 0)
        acc = acc * decay + tl.sum(sums * weights[:, None], 0)
        top = new_top
    some = total > 0
    total = tl.where(some, total, 1.0)
    output = acc / total
    tl.store(p_output + o_row * HEAD_DIM + o_d, output.to(p_output.dtype.element_ty), mask=m_d)
    lse = tl.where(some, (top + tl.log2(total)) * LN_2, float("-inf"))
    tl.store(p_lse + (token // rows * HEADS + head) * rows + token % rows, lse)
