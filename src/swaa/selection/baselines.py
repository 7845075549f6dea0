"""What a search is compared with: patterns, and the layers that each signal ranks first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from swaa.selection.board import Objective
from swaa.selection.candidate import Candidate
from swaa.selection.search import Search
from swaa.selection.signals import FROM_ATTENTION, SIGNALS, top
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


ALL = "all"
"""Every pattern and every signal."""

PATTERNS = ("odd", "even", "every", "first", "middle", "last")
"""Rules of :func:`swaa.selection.signals.periodic.patterns`, without their shares."""

Shares = Mapping[str, Mapping[int, float]]
"""For each of :data:`FROM_ATTENTION`, a number per layer; higher: keep the layer first."""


def check_baselines(names: Sequence[str]) -> None:
    """Refuse names of neither a pattern nor a signal.

    Raises:
        ValueError: with the known names.
    """
    known = (ALL, *PATTERNS, *SIGNALS)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown baseline {name!r}; give some of {', '.join(known)}")


def ranking(search: Search, signal: str, shares: Shares) -> Mapping[int, float]:
    """How important each layer's role is by one of :data:`SIGNALS`; higher: keep it first.

    Args:
        search: its board measures; its role is given to layers.
        signal: its name.
        shares: results of the signals from attention.
    """
    if signal in FROM_ATTENTION:
        return shares[signal]
    objective: Objective = "kl" if signal.startswith("kl") else "nll"
    flipped = direction(signal) or "add-one"
    return importance(search.board, search.knobs, search.role, objective, flipped)


def direction(signal: str) -> Direction | None:
    """The direction in which one of :data:`SIGNALS` flips layers; ``None``: it flips none."""
    if signal in FROM_ATTENTION:
        return None
    return "leave-one-out" if signal.endswith("_out") else "add-one"


def baselines(search: Search, wanted: Sequence[str], shares: Shares) -> list[Baseline]:
    """Patterns and rankings, measured, with as many layers as a search's budget allows.

    Empty where it allows no layer. Patterns that step through all layers may have fewer.

    Args:
        search: its board measures; its role is given to layers.
        wanted: names that :func:`check_baselines` knows.
        shares: results of the signals from attention.
    """
    able, count = search.board.able, search.capacity()
    if not count:
        return []
    chosen = [
        (layers, name.replace("/", "of"), "periodic")
        for name, layers in patterns(able, Fraction(count, len(able))).items()
        if is_wanted(name.partition(":")[0], wanted)
    ]
    chosen += [
        (top(ranking(search, name, shares), count), name, name)
        for name in SIGNALS
        if is_wanted(name, wanted)
    ]
    made = [
        Baseline(search.knobs.with_layers(search.role, layers), name, source)
        for layers, name, source in chosen
    ]
    search.board.ask([one.candidate for one in made], near=search.knobs)
    return made


def is_wanted(name: str, wanted: Sequence[str]) -> bool:
    """Whether a pattern or a signal is among those asked for."""
    return name in wanted or ALL in wanted
