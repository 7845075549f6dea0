"""Statistics of a cache's pages, updated as keys arrive; ``pages.py`` defines them."""

from __future__ import annotations

from torch import Tensor

from swaa.attention.mask import Position
from swaa.attention.pages import PAGE, page_statistics


def fill_statistics(
    keys: Tensor,
    statistics: Tensor,
    *,
    first: Position,
    end: Position,
    new: int,
    kv_start: Position = 0,
) -> None:
    """Write the statistics of the pages that new keys complete; does not wait for a GPU.

    Args:
        keys: ``[batch, slots, kv_heads, head_dim]``, including the new ones.
        statistics: ``[batch, pages, kv_heads, 2, head_dim]``, as from :func:`page_statistics`.
        first: slot of the first new key, an int or int32 ``[batch]``.
        end: slot after the last one, likewise.
        new: the most new keys of a sequence.
        kv_start: slot of the first real key, likewise.
    """
    if keys.is_cuda:
        from swaa.attention.triton.pages import summarise

        summarise(keys, statistics, first=first, end=end, new=new, kv_start=kv_start)
        return
    alike = not any(isinstance(x, Tensor) for x in (first, end, kv_start))
    for n in [slice(None)] if alike else [slice(n, n + 1) for n in range(len(keys))]:
        start = _item(kv_start, n)
        before = max(0, _item(first, n) - start) // PAGE
        complete = min(max(0, _item(end, n) - start) // PAGE, statistics.shape[1])
        if complete > before:
            slots = slice(start + before * PAGE, start + complete * PAGE)
            statistics[n, before:complete] = page_statistics(keys[n, slots])


def _item(value: Position, n: slice) -> int:
    return int(value[n]) if isinstance(value, Tensor) else value
