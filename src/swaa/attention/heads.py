"""Some heads of a tensor, and outputs of several groups of heads put together again.

Where KV heads of a layer see different keys, each group of heads that do the same is a call of its
own: its KV heads, and the query heads that share them. Heads are cut out as runs, without a tensor
of indices, so that a CUDA graph can record it, compiled code can trace it, and one run is no copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def take_heads(x: Tensor, heads: Sequence[int], *, dim: int, group: int = 1) -> Tensor:
    """The heads of a group, in order.

    Args:
        x: any tensor with ``group * kv_heads`` heads in one dimension.
        heads: KV heads to take, in ascending order.
        dim: the dimension of heads.
        group: query heads that share a KV head, where ``x`` has query heads.

    Returns:
        The tensor with ``group * len(heads)`` heads; a view where these are one run.
    """
    runs = [x.narrow(dim, group * first, group * count) for first, count in _runs(heads)]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=dim)


def join_heads(
    outputs: Sequence[Tensor], heads: Sequence[Sequence[int]], *, dim: int, group: int = 1
) -> Tensor:
    """Put outputs of groups of heads together, each head at its own place.

    Args:
        outputs: one per group, each with ``group * len(heads of the group)`` heads.
        heads: KV heads of each group, in ascending order; together they are all.
        dim: the dimension of heads.
        group: query heads that share a KV head.
    """
    placed: list[tuple[int, Tensor]] = []
    for output, own in zip(outputs, heads, strict=True):
        at = 0
        for first, count in _runs(own):
            placed.append((first, output.narrow(dim, group * at, group * count)))
            at += count
    return torch.cat([part for _, part in sorted(placed, key=lambda pair: pair[0])], dim=dim)


def _runs(heads: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of consecutive heads: the first of each, and how many.

    >>> _runs((0, 1, 4))
    [(0, 2), (4, 1)]
    """
    runs: list[tuple[int, int]] = []
    for head in heads:
        if runs and head == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((head, 1))
    return runs
