"""Which key blocks a block of query rows sees, wholly or in part: lists for block-sparse kernels.

The lists are built on the device by tensor operations: the numbers of the mask stay there, and the
host does not wait for them. Each list entry is the index of a key block; entries from ``count`` on
are undefined::

    window 4, 1 sink, blocks of 2 rows and 2 keys; x part of a block, # all of it

    rows 0-1    x . . . .      partial 0
    rows 2-3    # x . . .      partial 1      whole 0
    rows 4-5    x # x . .      partial 0 2    whole 1
    rows 6-7    x x # x .      partial 0 1 3  whole 2
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """The mask, row by row.

    Row ``i`` sees key ``j`` iff ``start[i] <= j <= position[i]`` and (``j >= left[i]`` or
    ``j < start[i] + sink_tokens``). All are integers ``[batch or 1, rows]`` that count keys in
    memory order: in packed calls from the first key of the first sequence.
    """

    position: Tensor
    left: Tensor
    start: Tensor


class BlockLists(NamedTuple):
    """Key blocks per query block, or (:func:`query_lists`) query blocks per key block; int32.

    Counts are ``[batch or 1, blocks]``, indices ``[batch or 1, blocks, most]``.
    """

    partial_count: Tensor
    partial: Tensor
    whole_count: Tensor
    whole: Tensor


class Ranges(NamedTuple):
    """What each query block sees, as half-open ranges of key blocks, each ``[batch or 1, blocks]``.

    ``(sinks_first, sinks)`` and ``(first, end)`` hold every key block of which some row sees a key;
    ``(whole_sinks_first, whole_sinks)`` and ``(whole_first, whole_end)`` hold the blocks that all
    rows see wholly.
    """

    sinks_first: Tensor
    sinks: Tensor
    first: Tensor
    end: Tensor
    whole_sinks_first: Tensor
    whole_sinks: Tensor
    whole_first: Tensor
    whole_end: Tensor


def block_ranges(rows: Rows, *, sink_tokens: int, block_q: int, block_k: int) -> Ranges:
    """Reduce rows to ranges of key blocks per query block.

    Rows must be consecutive: each sees its own position or is next to a row that does, so the union
    of their windows has no hole. Where sequences with cached keys are packed, the range spans the
    keys between them; such blocks are listed as partial, which is correct but reads more than
    necessary.
    """
    sink_end = rows.start + sink_tokens
    joined = rows.left <= sink_end  # sinks and window touch: one range from the start
    left = torch.where(joined, rows.start, torch.maximum(rows.left, rows.start))
    position, left, start, sink_end = (
        _in_blocks(x, block_q) for x in (rows.position, left, rows.start, sink_end)
    )
    bottom, top = position.amin(2), position.amax(2) + 1
    first = left.amin(2) // block_k
    # The first row belongs to the first sequence: later ones have no sinks before the window.
    seen_sinks = torch.minimum(sink_end[:, :, 0], top)
    sinks_first = torch.minimum(start[:, :, 0] // block_k, first)
    sinks = torch.minimum(_ceil(seen_sinks, block_k), first).maximum(sinks_first)
    if sink_tokens == 0:
        sinks = sinks_first
    below = (bottom + 1) // block_k  # blocks [.., below) end at or before every row's position
    whole_first = _ceil(left.amax(2), block_k)
    whole_sinks_first = _ceil(start.amax(2), block_k)
    whole_sinks = torch.minimum(sink_end.amin(2) // block_k, below).minimum(whole_first)
    return Ranges(
        sinks_first=sinks_first,
        sinks=sinks,
        first=first,
        end=_ceil(top, block_k).maximum(first),
        whole_sinks_first=whole_sinks_first,
        whole_sinks=whole_sinks.maximum(whole_sinks_first),
        whole_first=whole_first,
        whole_end=below,
    )


def most_key_blocks(keys: int, *, window: int, sink_tokens: int, block_q: int, block_k: int) -> int:
    """Most key blocks that sliding rows of one query block can see."""
    wide = (window + block_q - 2) // block_k + 2 + (sink_tokens + block_k - 2) // block_k + 1
    return min(wide, -(-keys // block_k))


def key_lists(ranges: Ranges, *, most: int) -> BlockLists:
    """List the key blocks of each query block.

    Args:
        ranges: from :func:`block_ranges`.
        most: most key blocks that a query block sees (:func:`most_key_blocks`, or all).
    """
    step = torch.arange(most, device=ranges.first.device)
    r = Ranges(*(x[:, :, None] for x in ranges))
    sinks = r.sinks - r.sinks_first
    block = torch.where(step < sinks, r.sinks_first + step, r.first + step - sinks)
    seen = block < r.end
    whole = seen & _is_whole(block, r)
    return BlockLists(*_compact(block, seen & ~whole), *_compact(block, whole))


def query_lists(ranges: Ranges, *, key_blocks: int) -> BlockLists:
    """List the query blocks of each key block, for a backward pass."""
    block = torch.arange(key_blocks, device=ranges.first.device)[:, None]
    r = Ranges(*(x[:, None, :] for x in ranges))
    seen = (block >= r.first) & (block < r.end) | (block >= r.sinks_first) & (block < r.sinks)
    whole = seen & _is_whole(block, r)
    rows = torch.arange(ranges.first.shape[1], device=block.device).expand(whole.shape)
    return BlockLists(*_compact(rows, seen & ~whole), *_compact(rows, whole))


def _is_whole(block: Tensor, r: Ranges) -> Tensor:
    in_sinks = (block >= r.whole_sinks_first) & (block < r.whole_sinks)
    return in_sinks | (block >= r.whole_first) & (block < r.whole_end)


def _compact(values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Move the kept values of the last axis to its front, in order; also return their number."""
    rank = kept.cumsum(-1)
    spare = values.shape[-1]  # everything that is not kept goes to one slot after the list
    slot = torch.where(kept, rank - 1, spare)
    listed = values.new_zeros((*values.shape[:-1], spare + 1), dtype=torch.int32)
    listed = listed.scatter_(-1, slot, values.int())
    # Copied, not only made contiguous: kernels also read the strides of axes of one element.
    plain = torch.contiguous_format
    count = rank[..., -1].int().clone(memory_format=plain)
    return count, listed[..., :spare].clone(memory_format=plain)


def _in_blocks(x: Tensor, size: int) -> Tensor:
    """``[batch, rows]`` as ``[batch, blocks, size]``, filled up by repeating the last row."""
    missing = -x.shape[1] % size
    if missing:
        x = torch.cat([x, x[:, -1:].expand(-1, missing)], dim=1)
    return x.unflatten(1, (-1, size))


def _ceil(x: Tensor, size: int) -> Tensor:
    return (x + size - 1) // size
