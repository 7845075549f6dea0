"""The work of a kernel: shapes, and the least computation and traffic that they need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swaa.attention.mask import left_bounds, visible
from swaa.attention.pages import PAGE

PHASES = ("prefill", "decode", "backward")
"""``decode`` is one query row per sequence; ``backward`` is a forward and its backward."""


@dataclass(frozen=True, kw_only=True)
class Mask:
    """The part of the rule that a kernel computes: a stock kernel may lack sinks, or a window.

    ``decode_keys``: other keys that a decoding row chooses by content.
    """

    window: int | None
    sink_tokens: int = 0
    decode_keys: int = 0

    @property
    def label(self) -> str:
        """For tables: ``window 2048 + 128 sinks``, ``window 2048``, ``full``."""
        if self.window is None:
            return "full"
        sinks = f" + {self.sink_tokens} sinks" if self.sink_tokens else ""
        chosen = f" + {self.decode_keys} chosen" if self.decode_keys else ""
        return f"window {self.window}{sinks}{chosen}"

    def seen(self, queries: int, keys: int) -> Tensor:
        """The mask of the last ``queries`` positions, bool ``[queries, keys]``.

        Of pages that score alike, as all do for queries of zero, the first are chosen.
        """
        position = torch.arange(keys - queries, keys)[None]
        left = left_bounds(position, window=self.window)
        key = torch.arange(keys)[None]
        seen = visible(position, key, left, sink_tokens=self.sink_tokens)[0]
        if self.decode_keys:
            first = self.sink_tokens // PAGE * PAGE
            seen[:, first : first + self.decode_keys] = True
        return seen

    def pairs(self, queries: int, keys: int) -> int:
        """Visible (query, key) pairs of the last ``queries`` positions."""
        before = torch.arange(keys - queries, keys) + 1  # keys up to each row's own
        if self.window is None:
            return int(before.sum())
        return int(before.clamp(max=self.window + self.sink_tokens + self.decode_keys).sum())


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One measurement: sizes in tokens and heads."""

    phase: str
    tokens: int
    batch: int = 1
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    @property
    def queries(self) -> int:
        """Query rows per sequence."""
        return 1 if self.phase == "decode" else self.tokens

    def flops(self, mask: Mask) -> int:
        """Useful floating-point operations: hidden pairs do not count."""
        forward = (
            4 * self.batch * self.heads * self.head_dim * mask.pairs(self.queries, self.tokens)
        )
        # A backward computes five products where the forward computes two.
        return forward * 7 // 2 if self.phase == "backward" else forward

    def kv_bytes(self, mask: Mask) -> int:
        """Bytes of the keys and values that at least one row sees, each read once.

        Where pages are chosen, those of the statistics of all pages are among them.
        """
        keys = self.tokens
        if mask.window is not None:
            keys = min(keys, mask.window + self.queries - 1 + mask.sink_tokens + mask.decode_keys)
        if mask.decode_keys:
            keys += self.tokens // PAGE
        return 2 * self.batch * keys * self.kv_heads * self.head_dim * self.dtype.itemsize

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Random ``q, k, v``, layout ``[batch, tokens, heads, head_dim]``."""
        sizes = (
            (self.queries, self.heads),
            (self.tokens, self.kv_heads),
            (self.tokens, self.kv_heads),
        )
        q, k, v = (
            torch.randn((self.batch, *size, self.head_dim), dtype=self.dtype, device="cuda")
            for size in sizes
        )
        return q, k, v
