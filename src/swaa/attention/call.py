"""One attention call, validated: what every backend receives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from swaa.attention.mask import Position, left_bounds

FP8 = torch.float8_e4m3fn
"""In what keys and values of pages may be stored: every value is exact in float16 and bfloat16."""


class Selection(NamedTuple):
    """Blocks of older keys chosen for each block of query rows; see ``selection.py``.

    Attributes:
        blocks: int32 ``[batch, kv_heads, row_blocks, most]``, numbers of key blocks, counted from
            the sequence's first real key; entries from ``counts`` on are undefined.
        counts: int32 ``[batch, kv_heads, row_blocks]``.
    """

    blocks: Tensor
    counts: Tensor


class AttentionOutput(NamedTuple):
    """What :func:`swaa.swaa_attention` returns.

    Attributes:
        output: ``[batch, queries, heads, head_dim]``, the dtype of the queries. A row that sees no
            key (padding) is zero.
        lse: float32 ``[batch, heads, queries]``, natural logarithm of each row's sum of
            exponentials, ``-inf`` for a row that sees no key; ``None`` from the ``sdpa`` backend,
            which does not compute it.
    """

    output: Tensor
    lse: Tensor | None


class BackendError(ValueError):
    """A backend requested by name cannot serve the call; the message says why."""


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """Validated arguments of :func:`swaa.swaa_attention`, with defaults filled in.

    ``q_start`` and ``kv_start`` are always set, except in packed calls, where every sequence
    starts at zero and its queries are its last tokens unless ``q_start`` says otherwise.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    window: int | None
    sink_tokens: int
    full_from: Position | None
    full_until: Position | None
    left: Tensor | None
    q_start: Position | None
    kv_start: Position
    kv_lens: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    block_table: Tensor | None
    scale: float
    selected_keys: int = 0
    selection: Selection | None = None
    decode_keys: int = 0
    decode_from: Position | None = None
    page_statistics: Tensor | None = None

    @property
    def packed(self) -> bool:
        """Whether sequences lie one after the other in a batch of one."""
        return self.cu_seqlens_q is not None

    @property
    def selects(self) -> bool:
        """Whether rows see older keys by content, already chosen or still to be chosen."""
        return self.selection is not None or self.selected_keys > 0

    @property
    def paged(self) -> bool:
        """Whether keys and values lie in pages named by a block table."""
        return self.block_table is not None

    def positions(self) -> Tensor:
        """Query positions, int64 ``[batch or 1, queries]`` (not for packed calls)."""
        offsets = torch.arange(self.q.shape[1], device=self.q.device)
        if isinstance(self.q_start, Tensor):
            return self.q_start.long()[:, None] + offsets
        assert self.q_start is not None
        return (offsets + self.q_start)[None]

    def left_rows(self, positions: Tensor) -> Tensor:
        """``left`` of the rows of :meth:`positions`: as declared, or computed from the numbers."""
        if self.left is not None:
            return self.left.long()
        return left_bounds(
            positions,
            window=self.window,
            kv_start=self.kv_start,
            full_from=self.full_from,
            full_until=self.full_until,
        )

    def sequences(self, *, unseen: bool = True) -> list[AttentionCall]:
        """Split a packed call into one dense call per sequence (reads the lengths on the host).

        Args:
            unseen: whether pages that no row sees are copied, too. Without them the positions
                behind the sinks' pages are smaller by what is left out.
        """
        assert self.cu_seqlens_q is not None
        ends_q = self.cu_seqlens_q.tolist()
        calls = []
        for n in range(len(ends_q) - 1):
            rows = slice(ends_q[n], ends_q[n + 1])
            count = ends_q[n + 1] - ends_q[n]
            skipped = range(0) if unseen else self._unseen_pages(n, count)
            k, v = self._keys_of(n, skipped)
            gap = 0 if self.block_table is None else len(skipped) * self.k.shape[1]
            length = k.shape[1]
            q_start = _item(self.q_start, n, length + gap - count)
            calls.append(
                replace(
                    self,
                    q=self.q[:, rows],
                    k=k,
                    v=v,
                    full_from=None if gap else _item(self.full_from, n),
                    full_until=None if gap else _item(self.full_until, n),
                    left=None if self.left is None else self.left[:, rows],
                    q_start=None if q_start is None else q_start - gap,
                    kv_start=_item(self.kv_start, n, 0) or 0,
                    decode_from=_item(self.decode_from, n),
                    page_statistics=self._statistics_of(n, length),
                    # A page may be freed and hold anything: keep the length, so slots are masked.
                    kv_lens=None if self.kv_lens is None else self.kv_lens[n : n + 1] - gap,
                    cu_seqlens_q=None,
                    cu_seqlens_k=None,
                    block_table=None,
                )
            )
        return calls

    def one(self, n: int) -> AttentionCall:
        """A dense call's sequence ``n`` as its own call, numbers as ints (read on the host)."""
        length = self.k.shape[1] if self.kv_lens is None else int(self.kv_lens[n])
        left = self.left
        return replace(
            self,
            q=self.q[n : n + 1],
            k=self.k[n : n + 1, :length],
            v=self.v[n : n + 1, :length],
            full_from=_item(self.full_from, n),
            full_until=_item(self.full_until, n),
            left=left if left is None or len(left) == 1 else left[n : n + 1],
            q_start=_item(self.q_start, n),
            kv_start=_item(self.kv_start, n) or 0,
            decode_from=_item(self.decode_from, n),
            page_statistics=None
            if self.page_statistics is None
            else self.page_statistics[n : n + 1],
            kv_lens=None,
            selection=None
            if self.selection is None
            else Selection(*(x[n : n + 1] for x in self.selection)),
        )

    def joined(self, outputs: list[Tensor]) -> Tensor:
        """Outputs of :meth:`sequences` joined; tokens after the last sequence are zero."""
        rows = sum(output.shape[1] for output in outputs)
        behind = self.q.new_zeros((1, self.q.shape[1] - rows, self.q.shape[2], self.v.shape[3]))
        return torch.cat([*outputs, behind], dim=1)

    def _unseen_pages(self, n: int, rows: int) -> range:
        """Pages of a packed call's sequence ``n`` between the sinks and the window of its rows.

        None where a row sees everything, declares what it sees, or chooses.
        """
        if self.block_table is None or self.window is None or self.left is not None:
            return range(0)
        if self.selects or self.decode_keys or rows == 0:
            return range(0)
        assert self.kv_lens is not None
        first = _item(self.q_start, n, int(self.kv_lens[n]) - rows)
        assert first is not None
        full_from, full_until = _item(self.full_from, n), _item(self.full_until, n)
        before = full_from is None or first + rows <= full_from
        if not (before or (full_until is not None and first >= full_until)):
            return range(0)
        page = self.k.shape[1]
        return range(-(-self.sink_tokens // page), max(0, first - self.window + 1) // page)

    def _keys_of(self, n: int, skipped: range) -> tuple[Tensor, Tensor]:
        """Keys and values ``[1, length, kv_heads, head_dim]`` of a packed call's sequence ``n``.

        Args:
            n: number of the sequence.
            skipped: pages that are left out.
        """
        if self.cu_seqlens_k is not None:
            rows = slice(int(self.cu_seqlens_k[n]), int(self.cu_seqlens_k[n + 1]))
            return self.k[:, rows], self.v[:, rows]
        assert self.block_table is not None
        assert self.kv_lens is not None
        size = self.k.shape[1]
        length = int(self.kv_lens[n])
        pages = self.block_table[n, : -(-length // size)].long().clamp(min=0)
        if skipped:
            pages = torch.cat([pages[: skipped.start], pages[skipped.stop :]])
            length -= len(skipped) * size
        k, v = (_copied(x, pages, self.q.dtype).flatten(0, 1) for x in (self.k, self.v))
        return k[None, :length], v[None, :length]

    def _statistics_of(self, n: int, length: int) -> Tensor | None:
        """Page statistics ``[1, pages, kv_heads, 2, head_dim]`` of a packed, paged sequence."""
        if self.page_statistics is None or self.block_table is None:
            return None
        blocks = self.block_table[n, : -(-length // self.k.shape[1])].long().clamp(min=0)
        return self.page_statistics[blocks].flatten(0, 1)[None]

    def gathered(self) -> AttentionCall:
        """A paged call as a dense one, its pages copied together (for the portable backends)."""
        assert self.block_table is not None
        table = self.block_table.long().clamp(min=0)
        pages = (table.shape[0], table.shape[1] * self.k.shape[1], *self.k.shape[2:])
        return replace(
            self,
            k=_copied(self.k, table, self.q.dtype).reshape(pages),
            v=_copied(self.v, table, self.q.dtype).reshape(*pages[:-1], self.v.shape[-1]),
            block_table=None,
            page_statistics=None
            if self.page_statistics is None
            else self.page_statistics[table].flatten(1, 2),
        )


def attend_apart(
    call: AttentionCall,
    attend: Callable[[AttentionCall], AttentionOutput],
    *,
    unseen: bool = True,
) -> AttentionOutput:
    """Serve a packed call sequence by sequence; tokens after the last one get zero rows.

    Args:
        call: packed.
        attend: serves one dense call, with or without lse.
        unseen: as :meth:`AttentionCall.sequences` takes it.
    """
    parts = [attend(one) for one in call.sequences(unseen=unseen)]
    output = call.joined([part.output for part in parts])
    found = [part.lse for part in parts if part.lse is not None]
    if len(found) < len(parts):
        return AttentionOutput(output, None)
    lse = torch.cat(found, dim=2)
    behind = call.q.shape[1] - lse.shape[2]
    return AttentionOutput(output, torch.nn.functional.pad(lse, (0, behind), value=float("-inf")))


def _copied(x: Tensor, pages: Tensor, dtype: torch.dtype) -> Tensor:
    """Pages of keys or values, in the type of the queries."""
    return x[pages].to(dtype)


def _item(value: Position | None, n: int, default: int | None = None) -> int | None:
    if isinstance(value, Tensor):
        return int(value[n])
    return default if value is None else value


def current_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the GPU that holds ``x`` the current one, on which kernels are launched.

    Does nothing in compiled code: torch.compile cannot trace it, and such code uses one device.
    """
    return nullcontext() if torch.compiler.is_compiling() else torch.cuda.device_of(x)
