"""Pages chosen in decoding: their statistics, their scores, the best of them.

The kernels are in ``page_kernels.py``. Grid and tiles follow from shapes alone and positions are
read on the device, so a captured CUDA graph stays exact while the cache grows.
"""

# A constexpr parameter takes an int, and a launch takes num_warps: Triton's types say neither.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from swaa.attention.call import AttentionCall
from swaa.attention.mask import Position
from swaa.attention.pages import PAGE, most_pages
from swaa.attention.triton.page_kernels import choose_kernel, score_kernel, summarise_kernel
from swaa.attention.triton.sequences import NEVER, can_overlap

MOST_CAPACITY = 1 << 16
"""Most pages of a sequence: one program looks at the scores of all of them."""
SCORE_BYTES = 256 << 20
"""Most bytes of scores at once; rows beyond it are processed in turns."""
TILE_BYTES = 1 << 15
"""Most bytes of means that a program reads: 64 pages of 512 bytes, or fewer larger ones."""
SCORE_WARPS = 4
"""Warps of a program that scores pages."""
PAGES_OF_A_WARP = 256
"""Scores that a warp compares, where pages are chosen among many."""


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
    statistics = call.q.new_zeros(*shape, kv_heads, 2, head_dim)
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
    best_pages(scores, pages, first, count, arguments, overlap=overlap)


def best_pages(
    scores: Tensor,
    pages: Tensor,
    first: int,
    count: int,
    arguments: dict[str, Any],
    *,
    overlap: bool,
) -> None:
    """Write the best pages of ``count`` rows, in rising order; of equally good ones the first.

    Args:
        scores: float32 ``[count or more, kv_heads, capacity]``, of rows from ``first`` on.
        pages: int32 ``[rows, kv_heads, most]``, written from row ``first`` on.
        first: the first row.
        count: how many rows.
        arguments: where rows are, as the kernels take it.
        overlap: whether launches overlap.
    """
    kv_heads, capacity = scores.shape[1:]
    most = triton.next_power_of_2(pages.shape[2])
    block = max(64, triton.next_power_of_2(capacity))
    warps = min(16, max(4, block // PAGES_OF_A_WARP))
    room = max(32, 2 * most if most > 128 else 4 * most)
    spare = torch.empty(count, kv_heads, 2, room, dtype=torch.int32, device=scores.device)
    choose_kernel[(kv_heads, count)](
        scores,
        pages,
        spare,
        first,
        **arguments,
        KV_HEADS=kv_heads,
        BLOCK_P=block,
        GROUPS=min(max(4 * most, 32 * warps), block // 2),
        ROOM=room,
        OVERLAP=overlap,
        num_warps=warps,
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
