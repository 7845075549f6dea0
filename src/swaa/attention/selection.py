"""Which older keys selected rows also see: the definition, in eager form.

In a call with ``selected_keys=N``, a sliding row also sees the ``N`` older keys that fit it best.
Keys are chosen in blocks of :data:`KEY_BLOCK`, for :data:`ROW_BLOCK` rows at once and for all query
heads that share a key head. Both kinds of blocks are counted from the sequence's first real key.
So padding does not move them, and a prompt cut at multiples of :data:`ROW_BLOCK` gets the same key
blocks as a whole one. At other cuts the rows of the call choose by themselves.

A block of rows that begins at ``r`` chooses among the blocks of keys that

* end at or before ``r``: they are complete, and every row may see all of them;
* begin before ``r + ROW_BLOCK - window``: some row's window lacks part of them;
* do not end within the sinks.

With window 128, 64 sinks, 512 tokens and key blocks of 64, rows 384 to 511 see ``s`` as sinks and
``w``, wholly or in part, in their window. They choose among ``c`` and the parts of ``b`` before
their window::

    key block   0 1 2 3 4 5 6 7
    rows 384..  s c c c b b w w

Rows score blocks in groups of :data:`ROW_GROUP`, by the mean of their queries: a quarter of the
work, and as good a choice. Each group's softmax gives every complete block a share
(:func:`share_blocks`). A block's score is the largest share from any group and head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swaa.attention.call import AttentionCall, Selection

ROW_BLOCK = 128
"""Query rows that share a choice, aligned to multiples of this number."""
KEY_BLOCK = 64
"""Keys that are chosen together, aligned to multiples of this number."""
ROW_GROUP = 4
"""Query rows that score as one, aligned to multiples of this number."""


def row_block_count(call: AttentionCall) -> int:
    """Blocks of rows per sequence: the most that a call's rows can touch."""
    rows = call.q.shape[1]
    starts = (call.q_start, call.kv_start)  # those that only the device knows may be anything
    aligned = all(not isinstance(start, Tensor) and start == 0 for start in starts)
    return -(-rows // ROW_BLOCK) + (0 if aligned else 1)


def most_blocks(call: AttentionCall) -> int:
    """Most key blocks that a block of rows chooses."""
    return call.selected_keys // KEY_BLOCK


def nothing_to_select(call: AttentionCall) -> bool:
    """Whether shapes alone show that every row already sees all keys that it could choose.

    Args:
        call: neither packed nor paged.
    """
    return call.window is None or call.k.shape[1] <= max(call.window, KEY_BLOCK)


def first_row_block(call: AttentionCall) -> Tensor:
    """Number of each sequence's first block of rows in the call, int64 ``[batch]``."""
    batch, device = call.q.shape[0], call.q.device
    first = torch.as_tensor(call.q_start, device=device) - torch.as_tensor(
        call.kv_start, device=device
    )
    return (first.clamp(min=0) // ROW_BLOCK).long().expand(batch)


def chosen_keys(call: AttentionCall, selection: Selection) -> Tensor:
    """The keys that a selection names, row by row: bool ``[batch, kv_heads, queries, keys]``."""
    key_blocks = -(-call.k.shape[1] // KEY_BLOCK)
    most = selection.blocks.shape[-1]
    listed = torch.arange(most, device=call.q.device) < selection.counts[..., None]
    # Undefined entries go to a block without keys.
    blocks = torch.where(listed, selection.blocks.long(), key_blocks).clamp(max=key_blocks)
    named = torch.zeros(
        *blocks.shape[:3], key_blocks + 1, dtype=torch.bool, device=call.q.device
    ).scatter_(-1, blocks, True)
    start = torch.as_tensor(call.kv_start, device=call.q.device).reshape(-1, 1)
    rows = (call.positions() - start).div(ROW_BLOCK, rounding_mode="floor")
    rows = (rows - first_row_block(call)[:, None]).clamp(0, named.shape[2] - 1)
    keys = torch.arange(call.k.shape[1], device=call.q.device)[None] - start
    keys = keys.div(KEY_BLOCK, rounding_mode="floor").clamp(min=0)
    batch, kv_heads = named.shape[:2]
    by_row = named.gather(2, rows[:, None, :, None].expand(batch, kv_heads, -1, key_blocks + 1))
    return by_row.gather(
        3, keys[:, None, None, :].expand(batch, kv_heads, by_row.shape[2], -1).long()
    )


def select(call: AttentionCall) -> Selection:
    """Choose the blocks of a call that is neither packed nor paged, in plain PyTorch."""
    batch, device = call.q.shape[0], call.q.device
    row_blocks = row_block_count(call)
    shape = (batch, call.k.shape[2], row_blocks, call.k.shape[1] // KEY_BLOCK)
    shares = torch.zeros(shape, device=device)
    left = call.left_rows(call.positions())
    for n in range(batch):
        one = call.one(n)
        for r in range(row_blocks):
            _share_rows(one, left[n if len(left) > 1 else 0], r, shares[n, :, r])
    return best_blocks(call, shares)


def best_blocks(call: AttentionCall, shares: Tensor) -> Selection:
    """The blocks with the largest shares.

    Args:
        call: dense.
        shares: ``[batch, kv_heads, row_blocks, blocks]``; a zero is never chosen.
    """
    best = shares.topk(min(most_blocks(call), shares.shape[-1]), dim=-1)
    return Selection(best.indices.int(), (best.values > 0).sum(-1).int())


def _share_rows(call: AttentionCall, left: Tensor, r: int, shares: Tensor) -> None:
    """Write the shares that the ``r``-th block of rows of one sequence gives to key blocks."""
    assert isinstance(call.q_start, int)
    assert isinstance(call.kv_start, int)
    assert call.window is not None
    start, first = call.kv_start, call.q_start - call.kv_start
    top = (max(0, first) // ROW_BLOCK + r) * ROW_BLOCK
    at_hand = range(call.q.shape[1])[max(0, top - first) : max(0, top + ROW_BLOCK - first)]
    rows = torch.tensor(at_hand, dtype=torch.long, device=call.q.device)
    rows = rows[left[rows] > start]  # others see every key, or none
    end = min(top // KEY_BLOCK, -(-(top + ROW_BLOCK - call.window) // KEY_BLOCK))
    begin = call.sink_tokens // KEY_BLOCK
    if end <= begin or len(rows) == 0:
        return
    _, group = torch.unique((rows + first) // ROW_GROUP, return_inverse=True)
    queries = mean_of_groups(call.q[0, rows], group)
    keys = call.k[0, start : start + top // KEY_BLOCK * KEY_BLOCK]
    found = share_blocks(queries, keys, call.scale)
    shares[:, begin:end] = found[:, begin:end]


def mean_of_groups(q: Tensor, group: Tensor) -> Tensor:
    """The mean query of each group, in the dtype of the queries.

    Args:
        q: ``[rows, heads, head_dim]``.
        group: int64 ``[rows]``, each row's group number, from 0 without gaps.

    Returns:
        ``[groups, heads, head_dim]``.
    """
    total = _widened(q.new_zeros(int(group.max()) + 1, *q.shape[1:]))
    total.index_add_(0, group, _widened(q))
    return (total / group.bincount()[:, None, None]).to(q.dtype)


def share_blocks(q: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Largest share that each block gets, by the bounds of its keys.

    A query's score of a block is the largest product that any key within the block's bounds could
    have with it: ``q . middle + |q| . reach`` (after Quest, arXiv 2406.10774, which scores pages so
    in decoding). Softmax over the blocks turns scores into shares, so that all queries count alike.

    Args:
        q: ``[queries, heads, head_dim]``.
        keys: ``[blocks * KEY_BLOCK, kv_heads, head_dim]``.
        scale: factor of the scores.

    Returns:
        ``[kv_heads, blocks]``, float32 or wider.
    """
    middle, reach = (_widened(x)[:, None].mT for x in block_bounds(keys))
    # [kv_heads, group, queries, head_dim]
    queries = _widened(q.unflatten(1, (keys.shape[1], -1)).permute(1, 2, 0, 3))
    scores = (queries @ middle + queries.abs() @ reach) * scale
    return scores.softmax(dim=-1).amax(dim=(1, 2))


def block_bounds(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and reach of each channel in each block, in the dtype of the keys.

    Args:
        keys: ``[blocks * KEY_BLOCK, kv_heads, head_dim]``.

    Returns:
        Both ``[kv_heads, blocks, head_dim]``: the channel is between ``middle - reach`` and
        ``middle + reach``, up to rounding.
    """
    blocks = keys.unflatten(0, (-1, KEY_BLOCK)).permute(2, 0, 1, 3)
    low, high = torch.aminmax(_widened(blocks), dim=2)
    return ((high + low) / 2).to(keys.dtype), ((high - low) / 2).to(keys.dtype)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
