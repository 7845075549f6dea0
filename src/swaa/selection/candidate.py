"""One candidate of the search: the knobs, and what each layer does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from swaa.config import LayerPlan, SWAAConfig
from swaa.heads import HeadSelection

Role = Literal["full", "decode", "heads"]
"""What a unit is given: a layer full attention, or full attention for generated tokens only
(``decode``); or a KV head the latter (``heads``)."""

Head = tuple[int, int]
"""A layer, and one of its KV heads."""

Unit = int | Head
"""What a role is given to: a layer, or a KV head."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration in the form that a search changes.

    Layers in neither set always slide. Two candidates are equal when they do the same.

    Attributes:
        window: keys a sliding row sees, itself included (tokens).
        sink_tokens: first tokens, always visible.
        dense_tail: last prompt tokens that see every key.
        full: layers left full.
        decode: sliding layers in which generated tokens see every key.
        heads: KV heads of sliding layers in which they do; where there are any, ``decode`` is
            empty.
    """

    window: int
    sink_tokens: int = 0
    dense_tail: int = 0
    full: frozenset[int] = frozenset()
    decode: frozenset[int] = frozenset()
    heads: frozenset[Head] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "full", frozenset(self.full))
        object.__setattr__(self, "decode", frozenset(self.decode) - self.full)
        heads = frozenset(head for head in self.heads if head[0] not in self.full)
        object.__setattr__(self, "heads", heads)
        assert not (self.heads and self.decode), "full decode is given to layers or to heads"

    @classmethod
    def of(
        cls,
        config: SWAAConfig,
        able: Iterable[int],
        depth: int,
        kv_heads: Sequence[int] | None = None,
    ) -> Candidate:
        """The candidate that does what a configuration says.

        Args:
            config: must slide.
            able: layers that can slide; the others stay as they are.
            depth: layers of the model.
            kv_heads: of each of them; only needed where ``config`` names heads.

        Raises:
            ValueError: for full attention, from which no search can start.
        """
        if config.window is None:
            raise ValueError("the recipe is full attention; give one with a window to search from")
        plans = config.layers(depth, kv_heads)
        able = frozenset(able)
        heads = frozenset((i, head) for i in able for head in plans[i].decode_heads)
        decode = frozenset(i for i in able if plans[i].full_decode)
        if heads:  # then all that decode in full are told by heads
            assert kv_heads is not None
            heads |= {(i, head) for i in decode for head in range(kv_heads[i])}
        return cls(
            window=config.window,
            sink_tokens=config.sink_tokens,
            dense_tail=config.dense_tail,
            full=frozenset(i for i in able if plans[i].full),
            decode=frozenset() if heads else decode,
            heads=heads,
        )

    def config(self, able: Iterable[int]) -> SWAAConfig:
        """The configuration: sorted indices, or a plain bool where every sliding layer agrees."""
        sliding = frozenset(able) - self.full
        everywhere = bool(sliding) and self.decode >= sliding
        decode = True if everywhere else tuple(sorted(self.decode))
        return SWAAConfig(
            window=self.window,
            sink_tokens=self.sink_tokens,
            dense_tail=self.dense_tail,
            full_layers=tuple(sorted(self.full)),
            full_decode=self._selected() if self.heads else decode,
        )

    def _selected(self) -> HeadSelection:
        found: dict[int, list[int]] = {}
        for layer, head in self.heads:
            found.setdefault(layer, []).append(head)
        return HeadSelection.of(found)

    def plans(
        self, able: Iterable[int], depth: int, kv_heads: Sequence[int] | None = None
    ) -> tuple[LayerPlan, ...]:
        """What each of the model's layers does; layers that cannot slide count as full."""
        able = frozenset(able)
        plans = self.config(able).layers(depth, kv_heads)
        return tuple(p if i in able else LayerPlan(window=None) for i, p in enumerate(plans))

    def screening_plans(
        self,
        able: Iterable[int],
        depth: int,
        rows: int,
        kv_heads: Sequence[int] | None = None,
    ) -> tuple[LayerPlan, ...]:
        """Like :meth:`plans`, but full layers are full in the last ``rows`` prompt rows only.

        What those rows see decides most of an answer, and they cost a fraction of the prompt.
        """
        tail = max(rows, self.dense_tail)
        near = LayerPlan(
            window=self.window, sink_tokens=self.sink_tokens, full_decode=True, dense_tail=tail
        )
        plans = self.plans(able, depth, kv_heads)
        return tuple(near if i in self.full else plan for i, plan in enumerate(plans))

    @property
    def near(self) -> LayerPlan:
        """Window and sinks alone: the view of a row that does not look far."""
        return LayerPlan(window=self.window, sink_tokens=self.sink_tokens)

    def layers(self, role: Role) -> frozenset[Any]:
        """The layers, or KV heads, that have a role."""
        return {"full": self.full, "decode": self.decode, "heads": self.heads}[role]

    def with_layers(self, role: Role, layers: Iterable[Unit]) -> Candidate:
        """The same candidate with other layers, or KV heads, in a role."""
        return replace(self, **{role: frozenset(layers)})

    def sliding(self) -> Candidate:
        """The same candidate without full decode anywhere."""
        return replace(self, decode=frozenset(), heads=frozenset())

    @property
    def key(self) -> str:
        """Ten hexadecimal digits that stand for what the candidate does."""
        content = [
            self.window,
            self.sink_tokens,
            self.dense_tail,
            *map(sorted, (self.full, self.decode)),
            *([sorted(self.heads)] if self.heads else []),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]
