"""Per-batch numbers of sliding layers, from SGLang's page table.

SGLang keeps the slot of every token of a request in ``req_to_token``; the first slot of each page,
divided by the page size, is the page table that :func:`swaa.swaa_attention` takes. Layers of the
sliding pool have slots of their own, found by a mapping from slot to slot.

A batch with prompt rows is cut into runs of requests: long chunks, whose keys are gathered, and the
rest, served over pages. Prompt lengths come from the requests, never from the shape of a batch.
A decode batch of a layer that slides needs sinks and window only: the pages between them are left
out of its table, and later positions move down by that gap. The result is again a sequence under
the same rule, in a table whose width does not depend on the request. Rows that see everything have
a second table, as wide as the longest context. Both can lie in buffers that never move, and a
captured CUDA graph reads the values of the batch that replays it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swaa.config import LayerPlan
from swaa.integrations.chunks import Chunks, lay_out, place


@dataclass(kw_only=True)
class Pages:
    """Where the keys of a batch's requests lie in one pool.

    Attributes:
        table: int32 ``[requests, pages]``.
        written: int64 ``[rows]``, slots of the batch's own keys; None in the full pool, whose
            slots SGLang passes itself.
    """

    table: Tensor
    written: Tensor | None = None


@dataclass(kw_only=True)
class Whole:
    """All that a decode batch's requests have in the full pool.

    Attributes:
        table: int32 ``[requests, pages]``, as wide as the longest context.
        lengths: int32 ``[requests]``, keys that exist.
    """

    table: Tensor
    lengths: Tensor


@dataclass(kw_only=True)
class Batch:
    """The numbers of one forward pass.

    Attributes:
        full: pages in the full pool.
        sliding: pages in the sliding pool, or None without one.
        lengths: int32 ``[requests]``, keys that exist.
        rows: of each request, on the host; None in decode batches.
        offsets: int32 ``[requests + 1]``, of each request's rows; None in decode batches.
        prompts: int32 ``[requests]``, prompt lengths; None in decode batches.
        host: lengths and prompt lengths of each request on the host, where they are known.
        whole: every page and all keys of each request of a decode batch, for rows that see
            everything; None in other batches.
    """

    full: Pages
    sliding: Pages | None
    lengths: Tensor
    rows: tuple[int, ...] | None = None
    offsets: Tensor | None = None
    prompts: Tensor | None = None
    host: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    whole: Whole | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """Consecutive requests of a batch that are served in one way.

    Attributes:
        requests: which of them.
        rows: their rows.
        chunks: their keys gathered; None: over pages.
    """

    requests: slice
    rows: slice
    chunks: Chunks | None


class Table:
    """SGLang's page table, seen through a window and sinks."""

    def __init__(self, runner: Any, *, window: int, sinks: int, whole: bool) -> None:
        self.whole = whole
        """Whether generated rows of some layer see everything."""
        self.page = int(runner.page_size)
        self.slots = runner.req_to_token_pool.req_to_token[:, :: self.page]
        """int32 ``[request slots, pages]``, a view: the first slot of each page."""
        self.pool = runner.token_to_kv_pool
        self.window = window
        self.head = -(-sinks // self.page)
        """Pages that hold the sinks."""
        self.width = min(self.head + window // self.page + 2, self.slots.shape[1])
        """Pages of a decoding request: sinks, and a window that may begin within a page."""

    @property
    def hybrid(self) -> bool:
        """Whether layers that slide in decoding have a pool of their own."""
        return hasattr(self.pool, "full_to_swa_index_mapping")

    def extend(self, batch: Any, prompts: Tensor, known: Sequence[int] | None) -> Batch:
        """The numbers of a batch with prompt rows.

        Args:
            batch: SGLang's ``ForwardBatch``.
            prompts: int32 ``[requests]``, prompt lengths.
            known: the same on the host, or None.
        """
        count = batch.batch_size
        counts = tuple(map(int, batch.extend_seq_lens_cpu[:count]))
        cached = tuple(map(int, batch.extend_prefix_lens_cpu[:count]))
        lengths = tuple(map(sum, zip(cached, counts, strict=True)))
        slots = self.slots[batch.req_pool_indices[:count], : -(-max(lengths) // self.page)]
        rows = batch.extend_seq_lens[:count]
        return Batch(
            **self._pools(slots, batch.out_cache_loc),
            lengths=batch.seq_lens[:count].to(torch.int32),
            rows=counts,
            offsets=torch.nn.functional.pad(rows.cumsum(0, dtype=torch.int32), (1, 0)),
            prompts=prompts,
            host=None if known is None else (lengths, tuple(known)),
        )

    def decode(self, batch: Any) -> Batch:
        """The numbers of a decode batch."""
        count, page = batch.batch_size, self.page
        lengths = batch.seq_lens[:count].to(torch.int32)
        first = ((lengths - self.window) // page).clamp(min=self.head)  # page of the window
        column = torch.arange(self.width, device=lengths.device, dtype=torch.int32)
        source = column + torch.where(column < self.head, 0, (first - self.head)[:, None])
        source = source.clamp(max=self.slots.shape[1] - 1)
        requests = batch.req_pool_indices[:count]
        return Batch(
            **self._pools(self.slots[requests[:, None], source], batch.out_cache_loc[:count]),
            lengths=lengths - (first - self.head) * page,
            whole=self._everything(requests, lengths) if self.whole else None,
        )

    def _everything(self, requests: Tensor, lengths: Tensor) -> Whole:
        return Whole(table=self.slots[requests] // self.page, lengths=lengths)

    def buffers(self, requests: int) -> Batch:
        """Room for the numbers of decode batches of up to so many requests."""
        device = self.slots.device
        table = torch.zeros(requests, self.width, dtype=torch.int32, device=device)
        written = torch.zeros(requests, dtype=torch.int64, device=device)
        lengths = torch.ones(requests, dtype=torch.int32, device=device)
        whole = None
        if self.whole:
            pages = torch.zeros(requests, self.slots.shape[1], dtype=torch.int32, device=device)
            whole = Whole(table=pages, lengths=lengths.clone())
        return Batch(
            full=Pages(table=table),
            sliding=Pages(table=table.clone(), written=written) if self.hybrid else None,
            lengths=lengths,
            whole=whole,
        )

    def _pools(self, slots: Tensor, written: Tensor) -> dict[str, Any]:
        found: dict[str, Any] = {"full": Pages(table=slots // self.page), "sliding": None}
        if self.hybrid:
            translate = self.pool.translate_loc_from_full_to_swa
            found["sliding"] = Pages(
                table=(translate(slots.long()) // self.page).to(torch.int32),
                written=translate(written).to(torch.int64),
            )
        return found


def stage(buffers: Batch, batch: Batch) -> Batch:
    """Copy a decode batch into buffers, and return the part of them that holds it."""
    count = batch.lengths.shape[0]

    def pages(room: Pages, found: Pages) -> Pages:
        table = room.table[:count]
        table.copy_(found.table)
        if room.written is None or found.written is None:
            return Pages(table=table)
        written, rows = room.written[:count], found.written.shape[0]
        written[:rows].copy_(found.written)
        written[rows:] = 0  # a batch padded to a graph's size: SGLang keeps slot 0 for that
        return Pages(table=table, written=written)

    lengths = buffers.lengths[:count]
    lengths.copy_(batch.lengths)
    sliding = None
    if buffers.sliding is not None and batch.sliding is not None:
        sliding = pages(buffers.sliding, batch.sliding)
    whole = None
    if buffers.whole is not None and batch.whole is not None:
        whole = Whole(table=buffers.whole.table[:count], lengths=buffers.whole.lengths[:count])
        whole.table.copy_(batch.whole.table)
        whole.lengths.copy_(batch.whole.lengths)
    full = pages(buffers.full, batch.full)
    return Batch(full=full, sliding=sliding, lengths=lengths, whole=whole)


def runs(
    batch: Batch, plan: LayerPlan, pages: Pages, *, page: int, min_rows: int, max_keys: int
) -> list[Run]:
    """Cut a batch with prompt rows into runs of requests that are served in one way.

    Args:
        batch: from :meth:`Table.extend`.
        plan: of the layers.
        pages: of the layers' pool.
        page: tokens of a page.
        min_rows: fewest rows of a request for which gathering is worth it.
        max_keys: most keys gathered for one run.
    """
    assert batch.rows is not None
    first_row = [0]
    for count in batch.rows:
        first_row.append(first_row[-1] + count)
    found = []
    for first, end in _alike(batch.rows, min_rows if batch.host is not None else None):
        if batch.host is None or batch.rows[first] < min_rows:
            found.append(_run(first_row, first, end, None))
            continue
        lengths, prompts = batch.host
        layout = lay_out(
            plan,
            [row - first_row[first] for row in first_row[first : end + 1]],
            lengths[first:end],
            prompts[first:end],
            min_rows=min_rows,
            max_keys=max_keys,
        )
        middle = end if layout is None else first + layout.first
        if middle > first:
            found.append(_run(first_row, first, middle, None))
        if layout is not None:
            chunks = place(layout, pages.table[first:end], plan.sink_tokens, page)
            found.append(_run(first_row, middle, end, chunks))
    return found


def _alike(rows: Sequence[int], min_rows: int | None) -> Iterator[tuple[int, int]]:
    """Longest runs of requests that all have at least ``min_rows`` rows, or all fewer."""
    first = 0
    for end in range(1, len(rows) + 1):
        last = end == len(rows)
        if last or (min_rows and (rows[end] >= min_rows) != (rows[first] >= min_rows)):
            yield first, end
            first = end


def _run(first_row: Sequence[int], first: int, end: int, chunks: Chunks | None) -> Run:
    return Run(
        requests=slice(first, end), rows=slice(first_row[first], first_row[end]), chunks=chunks
    )
