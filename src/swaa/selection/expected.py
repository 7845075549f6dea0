"""What a tuning has to measure, before it begins: counted for a ranking, estimated for a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from swaa.selection.baselines import direction
from swaa.selection.candidate import Candidate
from swaa.selection.search import Search
from swaa.selection.signals.flips import flips


class Amount(NamedTuple):
    """The work for one budget.

    Attributes:
        sets: sets of layers to measure.
        passes: the passes that they take, in passes over whole prompts.
    """

    sets: int
    passes: float


def expected(groups: Sequence[Sequence[Search]], method: str, *, baselines: bool) -> list[Amount]:
    """What is still to be measured under each budget.

    Args:
        groups: the searches of each budget, all on one board.
        method: ``search``: an estimate, whatever is known already; a signal: the most that its
            ranking takes, without what is known.
        baselines: whether patterns and every signal's choice are measured too.
    """
    found, counted = [], set[Candidate]()
    for searches in groups:
        amounts = [
            Amount(search.expected_sets(), search.expected())
            if method == "search"
            else _ranked(search, method, counted)
            for search in searches
        ]
        if baselines:
            amounts.append(Amount(*[2 * len(searches[0].board.able)] * 2))
        found.append(Amount(sum(a.sets for a in amounts), sum(a.passes for a in amounts)))
    return found


def _ranked(search: Search, signal: str, counted: set[Candidate]) -> Amount:
    """The sets that a ranking compares, and the one that it chooses; each is counted once."""
    board, which = search.board, direction(signal)
    base = search.knobs.with_layers(search.role, ())
    sets: list[Candidate] = []
    if which is not None:
        start, flipped = flips(search.units, search.knobs, search.role, which)
        sets = [start, *flipped.values()]
    new = [one for one in dict.fromkeys(board.missing(sets)) if one not in counted]
    counted.update(new)
    chosen = base.with_layers(search.role, search.units[: search.capacity()])
    return Amount(len(new) + 1, sum(map(board.price, [*new, chosen])))


def watch(
    amounts: Sequence[Amount], method: str, progress: Callable[[float, str], None]
) -> Iterator[Callable[[float], None]]:
    """For each budget in turn, what a board calls after each pass; shares go from 0 to 1.

    Args:
        amounts: from :func:`expected`.
        method: likewise.
        progress: called with the share that is done, and what is going on.
    """
    whole, sets = max(1e-9, sum(amount.passes for amount in amounts)), 0
    most = f" of {how_many(amounts, method)}" if method != "search" else ""

    def watched(before: float, amount: Amount) -> Callable[[float], None]:
        done = 0.0

        def report_pass(took: float) -> None:
            nonlocal done, sets
            done, sets = done + took, sets + 1
            share = (before + min(done, amount.passes)) / whole
            progress(share, f"search, {sets}{most} sets measured")

        return report_pass

    for number, amount in enumerate(amounts):
        yield watched(sum(earlier.passes for earlier in amounts[:number]), amount)


def how_many(amounts: Sequence[Amount], method: str) -> str:
    """The number of sets in words: ``at most 31`` for a ranking, ``about 900`` for a search."""
    count = sum(amount.sets for amount in amounts)
    return f"{'about' if method == 'search' else 'at most'} {count:,}"
