"""What a search is compared with: patterns, and the layers that each signal ranks first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

from swaa.selection.board import Objective
from swaa.selection.candidate import Candidate
from swaa.selection.search import Search
from swaa.selection.signals import FROM_ATTENTION, OF_HEADS, SIGNALS, top
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


PERIODIC = "periodic"
"""Source of the patterns."""

ALL = "all"
"""Every pattern and every signal."""

PATTERNS = ("odd", "even", "every", "first", "middle", "last")
"""Rules of :func:`swaa.selection.signals.periodic.patterns`, without their shares."""

Shares = Mapping[str, Mapping[Any, float]]
"""For each of :data:`FROM_ATTENTION`, a number per layer or KV head; higher: keep it first."""


def check_baselines(names: Sequence[str]) -> None:
    """Refuse names of neither a pattern nor a signal.

    Raises:
        ValueError: with the known names.
    """
    known = (ALL, *PATTERNS, *SIGNALS)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown baseline {name!r}; give some of {', '.join(known)}")


def ranking(search: Search, signal: str, shares: Shares) -> Mapping[Any, float]:
    """How important each unit's role is by one of :data:`SIGNALS`; higher: keep it first.

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

    Empty where it allows no layer. Patterns that step through all layers may have fewer. What is
    ranked is layers, also where the search is for KV heads, but for the signal of heads.

    Args:
        search: its board measures; its role is given to layers.
        wanted: names that :func:`check_baselines` knows.
        shares: results of the signals from attention.
    """
    made: list[Baseline] = []
    layers = replace(search, role="decode") if search.role == "heads" else search
    count, able = layers.capacity(), layers.board.able
    if count:
        share = Fraction(count, len(able))
        made += [
            Baseline(layers.knobs.with_layers(layers.role, kept), name.replace("/", "of"), PERIODIC)
            for name, kept in patterns(able, share).items()
            if is_wanted(name.partition(":")[0], wanted)
        ]
    for name in filter(lambda name: is_wanted(name, wanted), SIGNALS):
        by = layers
        if name == OF_HEADS:
            if search.role == "full":
                continue  # heads are given full decode only
            by = replace(search, role="heads", knobs=search.knobs.sliding())
        if by.capacity():
            chosen = top(ranking(by, name, shares), by.capacity())
            made.append(Baseline(by.knobs.with_layers(by.role, chosen), name, name))
    if not made:
        return []
    search.board.ask([one.candidate for one in made], near=search.knobs)
    return made


def is_wanted(name: str, wanted: Sequence[str]) -> bool:
    """Whether a pattern or a signal is among those asked for."""
    return name in wanted or ALL in wanted
