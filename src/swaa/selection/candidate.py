"""One candidate of the search: the knobs, and what each layer does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from swaa.config import LayerPlan, SWAAConfig

Role = Literal["full", "decode"]
"""What a layer is given: full attention, or full attention for generated tokens only."""


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
    """

    window: int
    sink_tokens: int = 0
    dense_tail: int = 0
    full: frozenset[int] = frozenset()
    decode: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "full", frozenset(self.full))
        object.__setattr__(self, "decode", frozenset(self.decode) - self.full)

    @classmethod
    def of(cls, config: SWAAConfig, able: Iterable[int], depth: int) -> Candidate:
        """The candidate that does what a configuration says.

        Args:
            config: must slide.
            able: layers that can slide; the others stay as they are.
            depth: layers of the model.

        Raises:
            ValueError: for full attention, from which no search can start.
        """
        if config.window is None:
            raise ValueError("the recipe is full attention; give one with a window to search from")
        plans = config.layers(depth)
        able = frozenset(able)
        return cls(
            window=config.window,
            sink_tokens=config.sink_tokens,
            dense_tail=config.dense_tail,
            full=frozenset(i for i in able if plans[i].full),
            decode=frozenset(i for i in able if plans[i].full_decode),
        )

    def config(self, able: Iterable[int]) -> SWAAConfig:
        """The configuration: sorted indices, or a plain bool where every sliding layer agrees."""
        sliding = frozenset(able) - self.full
        everywhere = bool(sliding) and self.decode >= sliding
        return SWAAConfig(
            window=self.window,
            sink_tokens=self.sink_tokens,
            dense_tail=self.dense_tail,
            full_layers=tuple(sorted(self.full)),
            full_decode=True if everywhere else tuple(sorted(self.decode)),
        )

    def plans(self, able: Iterable[int], depth: int) -> tuple[LayerPlan, ...]:
        """What each of the model's layers does; layers that cannot slide count as full."""
        able = frozenset(able)
        plans = self.config(able).layers(depth)
        return tuple(p if i in able else LayerPlan(window=None) for i, p in enumerate(plans))

    def screening_plans(self, able: Iterable[int], depth: int, rows: int) -> tuple[LayerPlan, ...]:
        """Like :meth:`plans`, but full layers are full in the last ``rows`` prompt rows only.

        What those rows see decides most of an answer, and they cost a fraction of the prompt.
        """
        tail = max(rows, self.dense_tail)
        near = LayerPlan(
            window=self.window, sink_tokens=self.sink_tokens, full_decode=True, dense_tail=tail
        )
        plans = self.plans(able, depth)
        return tuple(near if i in self.full else plan for i, plan in enumerate(plans))

    @property
    def near(self) -> LayerPlan:
        """Window and sinks alone: the view of a row that does not look far."""
        return LayerPlan(window=self.window, sink_tokens=self.sink_tokens)

    def layers(self, role: Role) -> frozenset[int]:
        """The layers that have a role."""
        return self.full if role == "full" else self.decode

    def with_layers(self, role: Role, layers: Iterable[int]) -> Candidate:
        """The same candidate with other layers in a role."""
        return replace(self, **{role: frozenset(layers)})

    @property
    def key(self) -> str:
        """Ten hexadecimal digits that stand for what the candidate does."""
        content = [
            self.window,
            self.sink_tokens,
            self.dense_tail,
            *map(sorted, (self.full, self.decode)),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]
