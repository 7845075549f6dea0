"""What a search is compared with: patterns, and the layers that each signal ranks first."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from swaa.selection.board import Objective
from swaa.selection.candidate import Candidate
from swaa.selection.search import Search
from swaa.selection.signals import SIGNALS, top
from swaa.selection.signals.flips import Direction, importance
from swaa.selection.signals.periodic import patterns


class Baseline(NamedTuple):
    """A set that no search chose.

    Attributes:
        candidate: the set.
        name: of the pattern or the signal.
        source: ``periodic``, or the signal.
    """

    candidate: Candidate
    name: str
    source: str


def ranking(search: Search, signal: str, lazy: Mapping[int, float]) -> Mapping[int, float]:
    """How much each layer's role matters by one of :data:`SIGNALS`; more is better kept.

    Args:
        search: its board measures; its role is given to layers.
        signal: its name.
        lazy: what :func:`swaa.selection.signals.lazy_ratio.lazy_ratio` found.
    """
    if signal.startswith("lazy_ratio"):
        sign = 1 if signal.endswith("reversed") else -1
        return {layer: sign * value for layer, value in lazy.items()}
    objective: Objective = "kl" if signal.startswith("kl") else "nll"
    flipped = direction(signal) or "add-one"
    return importance(search.board, search.knobs, search.role, objective, flipped)


def direction(signal: str) -> Direction | None:
    """How one of :data:`SIGNALS` flips layers; ``None``: it flips none."""
    if signal.startswith("lazy_ratio"):
        return None
    return "leave-one-out" if signal.endswith("_out") else "add-one"


def baselines(search: Search, lazy: Mapping[int, float]) -> list[Baseline]:
    """Patterns and rankings of as many layers as a search's budget pays for, measured.

    None where it pays for no layer. Patterns that step through all layers may have fewer.
    """
    able, count = search.board.able, search.capacity()
    if not count:
        return []
    found = patterns(able, Fraction(count, len(able)))
    chosen = [(layers, name.replace("/", "of"), "periodic") for name, layers in found.items()]
    chosen += [(top(ranking(search, name, lazy), count), name, name) for name in SIGNALS]
    made = [
        Baseline(search.knobs.with_layers(search.role, layers), name, source)
        for layers, name, source in chosen
    ]
    search.board.ask([one.candidate for one in made], near=search.knobs)
    return made
