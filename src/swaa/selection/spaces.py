"""Where a search may look: layers or KV heads for a role, under a budget, at each knob setting."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from swaa.selection.budget import Budget, Prices
from swaa.selection.candidate import Candidate, Role

Units = Literal["layers", "heads", "both"]
"""What budgets of ``kv`` and ``decode`` buy: layers, KV heads, or each, for comparison."""

KNOBS = ("window", "sink_tokens", "dense_tail")
"""Knobs that may be tried at several values."""


class Space(NamedTuple):
    """One thing to search: layers or KV heads for a role, under a budget, at given knobs."""

    budget: Budget
    knobs: Candidate
    role: Role


def spaces(
    base: Candidate,
    tries: Mapping[str, Sequence[int]],
    budget: Budget,
    units: Units = "layers",
) -> list[Space]:
    """What may be given to layers or KV heads under a budget, at each setting of the knobs.

    Args:
        base: knobs to begin with.
        tries: other values of :data:`KNOBS`.
        budget: in whole layers.
        units: what a budget of ``kv`` or ``decode`` buys; with heads no layer is made full.
    """
    values = [dict.fromkeys([getattr(base, name), *tries.get(name, ())]) for name in KNOBS]
    found = []
    for chosen in itertools.product(*values):
        settings = dict(zip(KNOBS, chosen, strict=True))
        knobs = dataclasses.replace(base, full=frozenset(), **settings)
        bare = knobs.sliding()
        if budget.kv is None and budget.decode is None:
            found.append(Space(budget, knobs, "full"))
            continue
        if units != "layers":
            found.append(Space(budget, bare, "heads"))
        if units == "heads":
            continue
        found.append(Space(budget, bare, "decode"))
        if budget.layers is None or budget.layers > 0:
            found.append(Space(budget, bare, "full"))
    return found


def least(found: Sequence[Space], prices: Prices) -> str | None:
    """The cost without any full layer, if even that breaks the budget; otherwise None."""
    none = [(space.knobs, prices.of(space.knobs)) for space in found]
    budget = found[0].budget
    if any(budget.allows(cost) for _, cost in none):
        return None
    knobs, cost = min(none, key=lambda pair: pair[1].kv + pair[1].flops)
    broken = ", ".join(f"{name}={getattr(cost, name):.2f}" for name in budget.broken(cost))
    return (
        f"without any full layer, at window {knobs.window} and {prices.length} tokens, the cost is"
        f" {broken}; raise it, or take a smaller window"
    )
