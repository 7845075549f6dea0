"""What a recipe may cost: layers, prefill FLOPs and KV bytes, as shares of full attention's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import NamedTuple

from swaa.plan import price
from swaa.selection.candidate import Candidate
from swaa.shapes import ModelShape

HALF = Fraction(1, 2)


class Cost(NamedTuple):
    """A candidate's cost.

    Attributes:
        layers: full layers, as a share of those that can slide.
        decode: layers that keep every key, likewise: full ones and those with full decode; a KV
            head with full decode is a part of its layer.
        flops: prefill FLOPs, as a share of full attention's.
        kv: bytes of keys and values after the prompt, as a share of full attention's.
    """

    layers: float
    decode: float
    flops: float
    kv: float


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper bounds, each a share of full attention's; ``None``: no bound.

    Attributes:
        layers: full layers, as a share of those that can slide.
        decode: layers that keep every key, likewise: full ones and those with full decode.
        flops: prefill FLOPs, attention and linear layers.
        kv: bytes of keys and values after the prompt.
    """

    layers: Fraction | None = None
    decode: Fraction | None = None
    flops: Fraction | None = None
    kv: Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``layers=1/4`` or ``kv=50%,flops=0.8``.

        Raises:
            ValueError: for unknown names and shares outside 0 to 1.
        """
        known = [field.name for field in fields(cls)]
        bounds: dict[str, Fraction] = {}
        for part in text.split(","):
            name, _, share = (word.strip() for word in part.partition("="))
            if name not in known or name in bounds:
                raise ValueError(
                    f"budget {text!r}: expected {', '.join(f'{n}=SHARE' for n in known)}, each at"
                    f" most once, such as layers=1/4 or kv=50%; got {part.strip()!r}"
                )
            bounds[name] = _share(share, text)
        return cls(**bounds)

    def __str__(self) -> str:
        """In the form that users type."""
        bounds = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ",".join(f"{name}={share}" for name, share in bounds if share is not None) or "none"

    def whole_layers(self, able: int) -> Budget:
        """The same with layers as whole numbers out of ``able``, rounded as for ``middle:1/4``."""
        names = [name for name in ("layers", "decode") if getattr(self, name) is not None]
        return replace(
            self, **{n: Fraction(math.floor(getattr(self, n) * able + HALF), able) for n in names}
        )

    def allows(self, cost: Cost) -> bool:
        """Whether a cost is within every bound."""
        return not self.broken(cost)

    def broken(self, cost: Cost) -> list[str]:
        """The bounds that a cost exceeds."""
        bounds = ((name, getattr(self, name)) for name in Cost._fields)
        return [
            name for name, most in bounds if most is not None and getattr(cost, name) > most + 1e-9
        ]


@dataclass(frozen=True)
class Prices:
    """Prices candidates on one model at one length.

    Attributes:
        shape: the model's sizes.
        able: layers that can slide.
        length: tokens of the prompt.
    """

    shape: ModelShape
    able: tuple[int, ...]
    length: int
    _known: dict[Candidate, Cost] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def full(self) -> Cost:
        """Full attention's cost."""
        return Cost(1.0, 1.0, 1.0, 1.0)

    def of(self, candidate: Candidate) -> Cost:
        """A candidate's cost; searches ask again and again for those of the same candidates."""
        if candidate not in self._known:
            self._known[candidate] = self._price(candidate)
        return self._known[candidate]

    def _price(self, candidate: Candidate) -> Cost:
        ratios = price(self.shape, candidate.config(self.able), prompt_length=self.length).ratios()
        return Cost(
            layers=len(candidate.full) / len(self.able),
            decode=self._decode(candidate),
            flops=ratios["prefill_flops"],
            kv=ratios["kv_steady_bytes"],
        )

    def _decode(self, candidate: Candidate) -> float:
        """The share of the layers that keep every key; a KV head is a part of its layer."""
        heads = sum(1 / self.shape.layers[layer].kv_heads for layer, _ in candidate.heads)
        return (len(candidate.full | candidate.decode) + heads) / len(self.able)


def _share(text: str, whole: str) -> Fraction:
    try:
        share = Fraction(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise ValueError(
            f"budget {whole!r}: {text!r} is not a share from 0 to 1, such as 1/4, 25% or 2/30"
        )
    return share
