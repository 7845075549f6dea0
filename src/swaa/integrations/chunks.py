"""Long chunks of prompts: the keys that each sees, gathered for the prefill kernels.

A chunk's rows see the sinks, a window and their own keys. The keys between sinks and window are
left out, and all later positions move down by that gap: the result is again a sequence under the
same rule. A request with rows that see everything (dense tail, generated tokens computed again) is
gathered whole where that is cheap; otherwise those rows are left to the paged kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swaa.config import LayerPlan

NEVER = 2**31 - 1
"""A position that no row reaches."""


@dataclass(frozen=True, kw_only=True)
class FullRows:
    """Rows of one request that see everything, computed by themselves.

    Attributes:
        request: index in the batch.
        first: index of the first row in the batch.
        end: index after the last row.
        position: of the first row.
    """

    request: int
    first: int
    end: int
    position: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the last requests of a batch are laid out; all others stay paged.

    Attributes:
        first: index of the first request.
        row: index of its first query row.
        rows: query rows of each request.
        kept: keys of each request that are gathered.
        gaps: keys of each request that are left out, after the sinks.
        full: for each request, the positions among the kept keys where full rows begin and end.
        apart: full rows that are computed by themselves afterwards, replacing their first result.
    """

    first: int
    row: int
    rows: tuple[int, ...]
    kept: tuple[int, ...]
    gaps: tuple[int, ...]
    full: tuple[tuple[int, int], ...]
    apart: tuple[FullRows, ...]


def lay_out(
    plan: LayerPlan,
    offsets: Sequence[int],
    lengths: Sequence[int],
    prompts: Sequence[int] | None,
    *,
    min_rows: int,
    max_keys: int,
) -> Layout | None:
    """Choose the requests whose keys are gathered: the last ones of the batch.

    Args:
        plan: of the layers.
        offsets: ``[requests + 1]``, of each request's query rows.
        lengths: ``[requests]``, keys of each.
        prompts: ``[requests]``, prompt lengths; None for a plan without phases.
        min_rows: fewest rows of a request for which gathering is worth it.
        max_keys: most keys gathered in all.

    Returns:
        The layout, or None when no request is worth it.
    """
    chosen: list[tuple[int, int, int, tuple[int, int], FullRows | None]] = []
    first, total = len(lengths), 0
    while first > 0:
        n = first - 1
        rows = offsets[n + 1] - offsets[n]
        if rows < min_rows:
            break
        if plan.decode_keys and prompts and lengths[n] > prompts[n]:
            break  # generated rows are computed again, and choose what they read
        start = lengths[n] - rows
        gap = 0
        if plan.window is not None:
            gap = max(0, start - (plan.window - 1) - plan.sink_tokens)
        full_from, full_until = (
            NEVER if position is None else position
            for position in plan.full_rows(prompts[n] if prompts else 0)
        )
        begin, end = max(full_from, start), min(full_until, lengths[n])
        apart = None
        if begin < end and gap <= rows:
            gap = 0
        elif begin < end:
            row = offsets[n] - start
            apart = FullRows(request=n, first=row + begin, end=row + end, position=begin)
        if gap:
            full_from = full_until = NEVER
        kept = lengths[n] - gap
        if total + kept > max_keys:
            break
        total += kept
        first = n
        chosen.append((rows, kept, gap, (full_from, full_until), apart))
    if not chosen:
        return None
    rows_, kept_, gaps_, full_, apart_ = zip(*reversed(chosen), strict=True)
    return Layout(
        first=first,
        row=offsets[first],
        rows=rows_,
        kept=kept_,
        gaps=gaps_,
        full=full_,
        apart=tuple(found for found in apart_ if found is not None),
    )


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """A layout on the device.

    Attributes:
        layout: the layout on the host.
        cu_rows: int32 ``[requests + 1]``, offsets of query rows, from 0.
        cu_keys: int32 ``[requests + 1]``, offsets of gathered keys.
        full_from: int32 ``[requests]``, or None when no row is full.
        full_until: as ``full_from``.
        slots: int64 ``[keys]``, each key's slot: block number times block size plus offset.
    """

    layout: Layout
    cu_rows: Tensor
    cu_keys: Tensor
    full_from: Tensor | None
    full_until: Tensor | None
    slots: Tensor


def place(layout: Layout, block_table: Tensor, sinks: int, page: int) -> Chunks:
    """Put a layout on the device of a block table.

    Args:
        layout: from :func:`lay_out`.
        block_table: int32 ``[requests of the batch, blocks]``.
        sinks: keys kept before each gap.
        page: keys per block.
    """
    device = block_table.device
    requests = len(layout.rows)
    numbers = [*_offsets(layout.rows), *_offsets(layout.kept), *layout.gaps]
    numbers += [*(pair[0] for pair in layout.full), *(pair[1] for pair in layout.full)]
    host = torch.tensor(numbers, dtype=torch.int32)
    if device.type == "cuda":
        host = host.pin_memory()  # otherwise the copy would wait for the device
    sizes = [requests + 1, requests + 1, requests, requests, requests]
    cu_rows, cu_keys, gaps, full_from, full_until = host.to(device, non_blocking=True).split(sizes)
    key = torch.arange(sum(layout.kept), device=device)
    owner = torch.searchsorted(cu_keys[1:].contiguous(), key, right=True)
    position = key - cu_keys[owner]
    position += torch.where(position < sinks, 0, gaps[owner])
    block = block_table[layout.first + owner, position // page].long()
    some_full = any(pair != (NEVER, NEVER) for pair in layout.full)
    return Chunks(
        layout=layout,
        cu_rows=cu_rows,
        cu_keys=cu_keys,
        full_from=full_from if some_full else None,
        full_until=full_until if some_full else None,
        slots=block * page + position % page,
    )


def _offsets(counts: Sequence[int]) -> list[int]:
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return offsets
