"""The one rule of the mask: every knob, phase, padding and packing is one integer per query row.

A key at position ``j`` is visible to the query at position ``i`` iff

    kv_start <= j <= i  and  (j >= left[i]  or  j < kv_start + sink_tokens)

``kv_start`` is the position of the sequence's first real token. ``left[i]`` is ``i - window + 1``
for a sliding row and ``kv_start`` for a full row. Nothing else in this package restates the rule:
backends, caches and integrations take ``left`` or the numbers that make it.

With window 4, 1 sink and 8 tokens, the last two of them full::

    row 0   1 . . . . . . .
    row 1   1 1 . . . . . .
    row 2   1 1 1 . . . . .
    row 3   1 1 1 1 . . . .
    row 4   1 1 1 1 1 . . .     the sink is not yet apart from the window
    row 5   1 . 1 1 1 1 . .
    row 6   1 1 1 1 1 1 1 .     full
    row 7   1 1 1 1 1 1 1 1     full

A *selected* row sees what a sliding row sees, and also older keys that were chosen for it by
content (``selection.py``): the last clause also has ``or j is chosen``.
"""

from __future__ import annotations

import torch
from torch import Tensor

Position = int | Tensor
"""A position shared by the batch (int) or one per sequence (int tensor ``[batch]``)."""


def column(value: Position) -> Position:
    """Shape a per-sequence position for arithmetic with ``[batch, queries]``."""
    return value[:, None] if isinstance(value, Tensor) else value


def left_bounds(
    positions: Tensor,
    *,
    window: int | None,
    kv_start: Position = 0,
    full_from: Position | None = None,
    full_until: Position | None = None,
) -> Tensor:
    """Leftmost position that each query row sees, sinks not counted.

    Args:
        positions: query positions, integer ``[batch or 1, queries]``.
        window: keys a sliding row sees, itself included; ``None`` makes every row full.
        kv_start: position of the first real token.
        full_from: rows at positions >= this are full; ``None`` makes no row full.
        full_until: only rows before this position are full; ``None`` sets no end.

    Returns:
        ``left``, the shape of ``positions`` broadcast with the per-sequence arguments. It may be
        smaller than ``kv_start``.
    """
    start = torch.as_tensor(column(kv_start), device=positions.device, dtype=positions.dtype)
    if window is None:
        return start.expand(torch.broadcast_shapes(start.shape, positions.shape))
    sliding = positions - (window - 1)
    if full_from is None:
        return sliding
    full = positions >= column(full_from)
    if full_until is not None:
        full = full & (positions < column(full_until))
    return torch.where(full, start, sliding)


def visible(
    positions: Tensor,
    key_positions: Tensor,
    left: Tensor,
    *,
    kv_start: Position = 0,
    sink_tokens: int = 0,
    chosen: Tensor | None = None,
) -> Tensor:
    """The rule itself, as a boolean mask.

    Args:
        positions: query positions, ``[batch or 1, queries]``.
        key_positions: key positions, ``[batch or 1, keys]``.
        left: ``[batch or 1, queries]``, from :func:`left_bounds` or declared row by row.
        kv_start: position of the first real token.
        sink_tokens: first real tokens that every row sees.
        chosen: keys that were chosen for a row by content, bool ``[batch, kv_heads, queries,
            keys]``.

    Returns:
        bool ``[batch or 1, queries, keys]``, True where the key is visible; with ``chosen``,
        ``[batch, kv_heads, queries, keys]``.
    """
    start = kv_start[:, None, None] if isinstance(kv_start, Tensor) else kv_start
    i, j = positions[:, :, None], key_positions[:, None, :]
    kept = j >= left[:, :, None]
    if sink_tokens:
        kept = kept | (j < start + sink_tokens)
    real = (j >= start) & (j <= i)
    if chosen is None:
        return real & kept
    return real[:, None] & (kept[:, None] | chosen)
