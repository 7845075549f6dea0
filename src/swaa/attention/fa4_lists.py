"""Block lists of a call in FlashAttention-4's form, kept per mask for the layers that share it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swaa.attention import block_lists
from swaa.attention.block_lists import BlockLists, Rows
from swaa.attention.call import AttentionCall
from swaa.attention.mask import left_bounds

NEVER = 2**31 - 1
"""A position that no row reaches."""
KEPT_LISTS = 8
"""How many masks' block lists are kept; with full rows one takes 8 MiB at 131,072 tokens."""


class Lists(NamedTuple):
    """Block lists in FlashAttention-4's form, and the tensors that its mask function reads."""

    forward: Any
    backward: Any
    mask: Any
    tensors: list[Tensor] | None


def needs_gradient(call: AttentionCall) -> bool:
    """Whether gradients will be computed."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in (call.q, call.k, call.v))


def some_rows_full(call: AttentionCall) -> bool:
    """Whether a row may be full: known from integers, assumed where only tensors say it."""
    if call.full_from is None:
        return False
    if call.packed or not isinstance(call.q_start, int):
        return True
    begins_after = isinstance(call.full_from, int) and call.full_from >= (
        call.q_start + call.q.shape[1]
    )
    ends_before = isinstance(call.full_until, int) and call.full_until <= call.q_start
    return not (begins_after or ends_before)


_kept: OrderedDict[tuple[Any, ...], tuple[list[Tensor], list[int], Lists]] = OrderedDict()


def make_lists(call: AttentionCall) -> Lists:
    """Block lists of a call, kept per mask: by value for integers, by identity for tensors."""
    numbers = (call.full_from, call.full_until, call.q_start, call.left, *_offsets(call))
    tensors = [x for x in numbers if isinstance(x, Tensor)]
    if any(x.is_inference() for x in tensors):  # they do not record whether they changed
        return _build_lists(call)
    key = (
        *(id(x) if isinstance(x, Tensor) else x for x in numbers),
        call.q.device,
        call.q.shape[0] if tensors else 1,
        *(call.q.shape[1], call.k.shape[1], call.q.shape[3]),
        *(call.window, call.sink_tokens, needs_gradient(call)),
    )
    versions = [x._version for x in tensors]
    found = _kept.get(key)
    if found is None or found[1] != versions:
        # The tensors are kept too: as long as they live, no other tensor has their identity.
        _kept[key] = found = (tensors, versions, _build_lists(call))
    _kept.move_to_end(key)
    while len(_kept) > KEPT_LISTS:
        _kept.popitem(last=False)
    return found[2]


def _offsets(call: AttentionCall) -> tuple[Tensor | None, Tensor | None]:
    return call.cu_seqlens_q, call.cu_seqlens_k


def _build_lists(call: AttentionCall) -> Lists:
    from swaa.attention import fa4_masks  # imports FlashAttention-4

    keys, head_dim = call.k.shape[1], call.q.shape[3]
    rows = _rows_of(call)
    block_q, block_k = forward_blocks(head_dim)
    most = -(-keys // block_k)
    if _only_slides(call):
        assert call.window is not None
        most = block_lists.most_key_blocks(
            keys,
            window=call.window,
            sink_tokens=call.sink_tokens,
            block_q=block_q,
            block_k=block_k,
        )
    sinks = call.sink_tokens
    ranges = block_lists.block_ranges(rows, sink_tokens=sinks, block_q=block_q, block_k=block_k)
    forward = _in_their_form(block_lists.key_lists(ranges, most=most), (block_q, block_k))
    backward = None
    if needs_gradient(call):
        size = backward_blocks(head_dim)
        ranges = block_lists.block_ranges(rows, sink_tokens=sinks, block_q=size[0], block_k=size[1])
        lists = block_lists.query_lists(ranges, key_blocks=-(-keys // size[1]))
        backward = _in_their_form(lists, size)
    integers = not any(
        isinstance(x, Tensor) for x in (call.q_start, call.full_from, call.full_until)
    )
    if call.packed or call.left is not None or not integers:
        tensors = [_padded(x, call.q.shape[0]) for x in rows]
        return Lists(forward, backward, fa4_masks.by_row(sinks), tensors)
    window = keys if call.window is None else call.window
    if call.q_start == 0 and not some_rows_full(call):
        return Lists(forward, backward, fa4_masks.sliding(window, sinks), None)
    numbers = (
        call.q_start,
        NEVER if call.full_from is None else call.full_from,
        NEVER if call.full_until is None else call.full_until,
    )
    tensors = [torch.tensor(numbers, dtype=torch.int32, device=call.q.device)]
    return Lists(forward, backward, fa4_masks.with_full_rows(window, sinks), tensors)


def _only_slides(call: AttentionCall) -> bool:
    """Whether no query block can see more key blocks than its window and the sinks hold."""
    if call.window is None or call.left is not None or some_rows_full(call):
        return False
    # Where packed sequences have cached keys, a range may span the keys between two sequences.
    return not call.packed or call.cu_seqlens_q is call.cu_seqlens_k


def _rows_of(call: AttentionCall) -> Rows:
    """The mask row by row, ``[batch or 1, rows]``, counting keys in memory order."""
    if not call.packed:
        position = call.positions()
        left = call.left_rows(position)
        return Rows(*torch.broadcast_tensors(position, left, torch.zeros_like(left)))
    assert call.cu_seqlens_q is not None
    assert call.cu_seqlens_k is not None
    ends_q, ends_k = call.cu_seqlens_q.long(), call.cu_seqlens_k.long()
    token = torch.arange(call.q.shape[1], device=call.q.device)
    sequence = torch.searchsorted(ends_q, token, right=True).clamp(1, len(ends_q) - 1) - 1
    start = ends_k[sequence]
    q_start = call.q_start
    if q_start is None:
        q_start = ends_k.diff() - ends_q.diff()
    if isinstance(q_start, Tensor):
        q_start = q_start[sequence]
    position = token - ends_q[sequence] + q_start
    if call.left is not None:
        left = call.left[0].long()
    else:
        left = left_bounds(
            position[:, None],
            window=call.window,
            full_from=_of_token(call.full_from, sequence),
            full_until=_of_token(call.full_until, sequence),
        )[:, 0]
    return Rows((position + start)[None], (left + start)[None], start[None])


def _of_token(value: int | Tensor | None, sequence: Tensor) -> int | Tensor | None:
    return value[sequence] if isinstance(value, Tensor) else value


def _padded(x: Tensor, batch: int) -> Tensor:
    """A tensor padded for the mask function, which reads up to one block after the last row."""
    x = torch.cat([x, x[:, -1:].expand(-1, 256)], dim=1)
    return x.int().expand(batch, -1).contiguous()


def _in_their_form(lists: BlockLists, block_size: tuple[int, int]) -> Any:
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    return BlockSparseTensorsTorch(*(x[:, None] for x in lists), block_size=block_size)


def forward_blocks(head_dim: int) -> tuple[int, int]:
    """Query rows and keys of a listed block: the tiles that FlashAttention-4 takes on Hopper."""
    if head_dim <= 80:
        return 192, 128
    return (128, 128) if head_dim <= 128 else (128, 80)


def backward_blocks(head_dim: int) -> tuple[int, int]:
    """Like :func:`forward_blocks`, for its backward."""
    return (128, 128) if head_dim <= 128 else (128, 64)
