"""Which older keys a full row reads in decoding: the definition, in eager form.

In a call with ``decode_keys=N``, a row at or after ``decode_from`` that would see every key reads
sinks, window, and the ``N`` others that fit it best. They are chosen anew for each row and key
head, in pages of :data:`PAGE` keys. Pages are counted from the sequence's first real key, so
padding does not move them. No key is dropped: a later row may still choose it.

The row at ``i`` (counted from the first real key) chooses among the pages that

* do not end within the sinks;
* begin before ``i + 1 - window``: the row's window lacks part of them;
* end at or before ``i + 1``: they are complete.

Where there are at most ``N / PAGE`` of them, the row sees everything: within the budget this is
full decode. Rows before ``decode_from`` do not choose; only they can be selected
(``selection.py``).

A page is described by the mean and the standard deviation of its keys, channel by channel. A query
scores it by ``q . mean + |q| . std``: about the largest product with any of its keys. A page's
score is the largest among the query heads that share the key head; of pages with equal scores the
first are chosen. (Pages scored by bounds: Quest, arXiv 2406.10774.)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from swaa.attention.call import AttentionCall
from swaa.attention.mask import column, visible

PAGE = 16
"""Keys that are chosen together, aligned to multiples of it."""


def page_statistics(keys: Tensor) -> Tensor:
    """Mean and standard deviation of each complete page, channel by channel.

    Args:
        keys: ``[batch, tokens, kv_heads, head_dim]``, beginning with the sequence's first key.

    Returns:
        ``[batch, tokens // PAGE, kv_heads, 2, head_dim]`` in the dtype of the keys.
    """
    pages = keys.shape[1] // PAGE
    whole = _widened(keys[:, : pages * PAGE].unflatten(1, (pages, PAGE)))
    std, mean = torch.std_mean(whole, dim=2, correction=0)
    return torch.stack([mean, std], dim=3).to(keys.dtype)


def most_pages(call: AttentionCall) -> int:
    """How many pages a row chooses, if it chooses."""
    return call.decode_keys // PAGE


def candidates(call: AttentionCall, positions: Tensor) -> tuple[int, Tensor]:
    """The range of pages that rows may choose from.

    Args:
        call: dense.
        positions: of the rows, int64 ``[batch or 1, queries]``.

    Returns:
        The first page, and each row's end ``[batch or 1, queries]``; an end that is not greater
        means no pages.
    """
    assert call.window is not None
    seen = positions + 1 - column(call.kv_start)
    unseen = -((call.window - seen) // PAGE)  # pages that begin before the window, rounded up
    return call.sink_tokens // PAGE, torch.minimum(unseen, seen // PAGE)


def decoding(call: AttentionCall, positions: Tensor) -> Tensor:
    """Which rows are at or after ``decode_from``: bool ``[batch or 1, queries]``."""
    return positions >= column(0 if call.decode_from is None else call.decode_from)


def choosing(call: AttentionCall, positions: Tensor) -> Tensor:
    """Which rows choose: bool ``[batch, queries]``."""
    first, end = candidates(call, positions)
    full = call.left_rows(positions) <= column(call.kv_start)
    rows = full & decoding(call, positions) & (end - first > most_pages(call))
    return rows.expand(call.q.shape[0], -1)


def choose(call: AttentionCall) -> Tensor:
    """The pages that each row of a dense call chooses, by the definition.

    Returns:
        int32 ``[batch, kv_heads, queries, decode_keys // PAGE]``, page numbers; undefined for rows
        that do not choose.
    """
    batch, queries, heads, _ = call.q.shape
    kv_heads, most = call.k.shape[2], most_pages(call)
    pages = torch.zeros(batch, kv_heads, queries, most, dtype=torch.int32, device=call.q.device)
    positions = call.positions()
    rows = choosing(call, positions)
    first, end = candidates(call, positions)
    end = end.expand(batch, -1)
    for n in range(batch):
        if not bool(rows[n].any()):
            continue
        start = int(call.kv_start[n]) if isinstance(call.kv_start, Tensor) else call.kv_start
        statistics = _statistics_of(call, n, start)
        scores = score_pages(call.q[n].unflatten(1, (kv_heads, heads // kv_heads)), statistics)
        numbers = torch.arange(scores.shape[-1], device=scores.device)
        open_to = (numbers >= first) & (numbers < end[n, :, None]) & rows[n, :, None]
        open_scores = scores.masked_fill(~open_to, float("-inf"))
        best = open_scores.sort(stable=True, dim=-1, descending=True).indices[..., :most]
        pages[n, :, :, : best.shape[-1]] = best.int()
    return pages


def score_pages(queries: Tensor, statistics: Tensor) -> Tensor:
    """Score of each page for each row: the largest among its query heads.

    Args:
        queries: ``[rows, kv_heads, group, head_dim]``.
        statistics: ``[pages, kv_heads, 2, head_dim]``.

    Returns:
        ``[kv_heads, rows, pages]``, float32 or wider.
    """
    mean, std = (_widened(statistics[:, :, n].permute(1, 2, 0)) for n in range(2))
    q = _widened(queries.transpose(0, 1))
    rows = q.flatten(1, 2)
    scores = rows @ mean + rows.abs() @ std  # [kv_heads, rows * group, pages]
    return scores.unflatten(1, q.shape[1:3]).amax(2)


def with_pages(call: AttentionCall, pages: Tensor) -> tuple[Tensor, Tensor]:
    """What rows see once they have chosen.

    Args:
        call: dense.
        pages: from :func:`choose`.

    Returns:
        ``left`` of each row ``[batch, queries]``, that of a sliding row where the row chooses; and
        the chosen keys, bool ``[batch, kv_heads, queries, keys]``.
    """
    assert call.window is not None
    positions = call.positions()
    rows = choosing(call, positions)
    left = call.left_rows(positions).expand(rows.shape)
    left = torch.where(rows, positions - (call.window - 1), left)
    slots = torch.arange(call.k.shape[1], device=pages.device)[None] - column(call.kv_start)
    numbers = slots.div(PAGE, rounding_mode="floor")
    total = -(-call.k.shape[1] // PAGE)
    named = torch.zeros(*pages.shape[:3], total, dtype=torch.bool, device=pages.device)
    named = named.scatter_(-1, pages.long().clamp(max=total - 1), True) & rows[:, None, :, None]
    index = numbers.clamp(min=0).long().expand(pages.shape[0], -1)[:, None, None]
    chosen = named.gather(-1, index.expand(*pages.shape[:3], -1))
    return left, chosen & (numbers >= 0)[:, None, None]


def page_mask(call: AttentionCall, pages: Tensor | None = None) -> Tensor:
    """What each row of a dense call without selected rows sees.

    Args:
        call: with rows of any kind.
        pages: from :func:`choose`; None: choose them now.

    Returns:
        bool ``[batch, kv_heads, queries, keys]``.
    """
    left, chosen = with_pages(call, choose(call) if pages is None else pages)
    keys = torch.arange(call.k.shape[1], device=call.k.device)[None]
    mask = visible(
        call.positions(),
        keys,
        left,
        kv_start=call.kv_start,
        sink_tokens=call.sink_tokens,
        chosen=chosen,
    )
    return mask if call.kv_lens is None else mask & (keys < column(call.kv_lens))[:, None, None]


def nothing_to_choose(call: AttentionCall) -> bool:
    """Whether shapes and integers alone show that no row chooses.

    Args:
        call: neither packed nor paged.
    """
    assert call.window is not None
    keys = call.k.shape[1]
    if keys - call.window <= call.decode_keys:
        return True
    first, start = call.decode_from, call.q_start
    if not isinstance(first, int) or not isinstance(start, int):
        return False
    return start + call.q.shape[1] <= first


def without_pages(call: AttentionCall) -> AttentionCall:
    """The call in which full rows read every key."""
    return replace(call, decode_keys=0, decode_from=None, page_statistics=None)


def rows_apart(call: AttentionCall) -> tuple[AttentionCall | None, AttentionCall | None] | None:
    """Split a dense call at ``decode_from``: rows before it choose no pages, the others do.

    Returns:
        A call for each part, None for a part without rows; None instead of both where the sequences
        differ. A ``decode_from`` that is a tensor of one element is read on the host.
    """
    start, begin = call.q_start, 0 if call.decode_from is None else call.decode_from
    if isinstance(begin, Tensor) and len(begin) == 1:
        begin = int(begin)
    if isinstance(start, Tensor) or isinstance(begin, Tensor):
        return None
    assert start is not None
    rows = call.q.shape[1]
    cut = min(max(begin - start, 0), rows)
    before, after = without_pages(call), replace(call, selected_keys=0)
    if cut == rows:
        return before, None
    if cut == 0:
        return None, after
    left = (None, None) if call.left is None else (call.left[:, :cut], call.left[:, cut:])
    return (
        replace(before, q=call.q[:, :cut], left=left[0]),
        replace(after, q=call.q[:, cut:], left=left[1], q_start=start + cut),
    )


def _statistics_of(call: AttentionCall, n: int, start: int) -> Tensor:
    if call.page_statistics is not None:
        return call.page_statistics[n]
    return page_statistics(call.k[n : n + 1, start:])[0]


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
