"""Requests with prompt rows in layers whose prompt rows are selected: each is computed by itself.

Its keys are gathered from the first one on, because any of them may be chosen. Requests that have
only generated rows see every key, and stay paged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swaa.config import LayerPlan


@dataclass(frozen=True, kw_only=True)
class PromptRows:
    """The rows of one request in a batch, at least one of them from its prompt.

    Attributes:
        request: index in the batch.
        first: index of the first row in the batch.
        end: index after the last row.
        position: of the first row.
        full_from: position from which the request's rows see everything.
        prompt: tokens of the prompt.
    """

    request: int
    first: int
    end: int
    position: int
    full_from: int
    prompt: int

    @property
    def keys(self) -> int:
        """Number of keys once the rows are stored."""
        return self.position + self.end - self.first


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The requests of one batch that have prompt rows, on the device.

    Attributes:
        rows: the rows of each such request.
        paged: how many of the first requests of the batch are computed over pages; those among
            them with prompt rows are computed again.
        paged_rows: how many rows those requests have.
        slots: for each of ``rows``, int64 ``[keys]``: where its keys are, block number times block
            size plus offset.
    """

    rows: tuple[PromptRows, ...]
    paged: int
    paged_rows: int
    slots: tuple[Tensor, ...]


def prompt_rows(
    plan: LayerPlan, offsets: Sequence[int], lengths: Sequence[int], prompts: Sequence[int]
) -> tuple[PromptRows, ...]:
    """The requests of a batch with a row that is not full.

    Args:
        plan: of the layers; has selected keys.
        offsets: ``[requests + 1]``, of each request's query rows.
        lengths: ``[requests]``, keys of each; an upper bound for a request that generates.
        prompts: ``[requests]``, prompt lengths.
    """
    found = []
    for n, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        position = length - (offsets[n + 1] - offsets[n])
        full_from, _ = plan.full_rows(prompt)
        assert full_from is not None
        if position < full_from:
            found.append(
                PromptRows(
                    request=n,
                    first=offsets[n],
                    end=offsets[n + 1],
                    position=position,
                    full_from=full_from,
                    prompt=prompt,
                )
            )
    return tuple(found)


def place(
    rows: tuple[PromptRows, ...], offsets: Sequence[int], block_table: Tensor, page: int
) -> Selected:
    """Put the requests of a batch on the device of a block table.

    Args:
        rows: from :func:`prompt_rows`, at least one.
        offsets: ``[requests + 1]``, of each request's query rows.
        block_table: int32 ``[requests, blocks]``.
        page: keys per block.
    """
    paged = len(offsets) - 1
    listed = {one.request for one in rows}
    while paged - 1 in listed:
        paged -= 1
    key = torch.arange(max(one.keys for one in rows), device=block_table.device)
    slots = tuple(
        block_table[one.request, key[: one.keys] // page].long() * page + key[: one.keys] % page
        for one in rows
    )
    return Selected(rows=rows, paged=paged, paged_rows=offsets[paged], slots=slots)
