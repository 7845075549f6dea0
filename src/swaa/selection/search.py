"""Search over sets of layers or KV heads under a budget: several kinds of starts, then swaps.

Single layers tell little where several work together, so a set is always measured as a set. The
result is the best of all sets measured, not the one at which the last step ended. The
objective is teacher-forced (a pass, no generation); the best sets are verified by generation later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, get_args

from swaa.selection.board import SHORT, Board, Objective
from swaa.selection.budget import Budget, Prices
from swaa.selection.candidate import Candidate, Head, Role, Unit
from swaa.selection.signals import top
from swaa.selection.signals.flips import Direction, importance
from swaa.selection.signals.periodic import blocks


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long a search looks.

    Attributes:
        additions: layers tried in a step of the greedy start: those that helped most before.
        dropped: share of the layers that one step of the elimination removes.
        rounds: most rounds of swaps.
        pairs: a round of swaps tries every pair of this many layers to remove and to add.
        gain: nats per token that a swap must save.
        screen: last prompt rows by which sets of full layers are screened; 0: no screening.
        finalists: the best sets in screening, which are then measured without it.
        leave_one_out: if sets are screened, also start from what is lost without each layer,
            measured without screening: one pass over whole prompts per layer.
    """

    additions: int = 10
    dropped: float = 0.3
    rounds: int = 4
    pairs: int = 3
    gain: float = 1e-4
    screen: int = 128
    finalists: int = 12
    leave_one_out: bool = True


class Found(NamedTuple):
    """The result of a search.

    Attributes:
        best: the best candidate within the budget, of all measured without screening.
        value: its objective (nats per token).
        starts: the best of each kind of start, by its name.
    """

    best: Candidate
    value: float
    starts: dict[str, Candidate]


@dataclass(frozen=True)
class Search:
    """Looks for the layers to give a role.

    Attributes:
        board: measures and remembers.
        prices: gives the cost of candidates.
        budget: the highest cost.
        knobs: window, sinks, tail, and the layers of the other role.
        role: what layers or KV heads are given.
        effort: how long to look.
        ranked: for KV heads, a number for each from one pass; the search starts from the highest
            and only swaps.
    """

    board: Board
    prices: Prices
    budget: Budget
    knobs: Candidate
    role: Role
    effort: Effort = field(default_factory=Effort)
    ranked: Mapping[Head, float] | None = None

    def run(self) -> Found:
        """Search.

        Raises:
            ValueError: when even a set without layers exceeds the budget.
        """
        none = self._with(())
        broken = self.budget.broken(self.prices.of(none))
        if broken:
            cost = self.prices.of(none)
            least = ", ".join(f"{name}={getattr(cost, name):.3f}" for name in broken)
            raise ValueError(
                f"the budget {self.budget} cannot be met: with window {self.knobs.window} and no"
                f" {self.role} layer at all the cost is {least} of full attention's at"
                f" {self.prices.length} tokens; raise it, or take a smaller window"
            )
        count = self.capacity()
        self.board.ask([none], near=none)
        if not count:
            return Found(none, self.board.value(none), {"none": none})
        if self.role == "heads":
            starts = {"ranked": self._swapped(count)}
            best = self.measured()[0]
            return Found(best, self.board.value(best), starts)
        screened = self.role == "full" and self.effort.screen
        starts = self._screened(none, count) if screened else self._look(none, count)
        best = self.measured()[0]
        return Found(best, self.board.value(best), starts)

    def measured(self) -> list[Candidate]:
        """The candidates this search may return, best first: all on its board, whoever asked.

        Only sets with its knobs and within its budget; other searches share the board.
        """
        asked = dict.fromkeys(self.board.asked)
        alike = (c for c in asked if c == self._with(self._layers(c)))
        return sorted(filter(self._allowed, alike), key=self.board.value)

    def expected(self) -> float:
        """About how many passes over whole prompts the search takes."""
        short, whole = self._expected()
        return SHORT * short + whole

    def expected_sets(self) -> int:
        """About how many sets the search measures."""
        return sum(self._expected())

    def _expected(self) -> tuple[int, int]:
        """Sets that take a pass over last rows only, and sets that take one over whole prompts."""
        depth = len(self.units)
        if not self.capacity():
            return 0, 1
        if self.role == "heads":  # two rounds of swaps
            return 2 * (depth + self.effort.pairs**2 + 2), 0
        if self.role == "decode":
            return 9 * depth, 0
        if not self.effort.screen:
            return 0, 9 * depth
        out = depth + 3 if self.effort.leave_one_out else 0
        return 10 * depth, out + self.effort.finalists + 2 * self.effort.pairs**2

    def _screened(self, none: Candidate, count: int) -> dict[str, Candidate]:
        """Search by the last prompt rows, then measure the best sets without screening.

        Leave-one-out and swaps proposed by screening make up for what those rows do not show.
        """
        board = self.board.screening(self.effort.screen)
        guide = replace(self, board=board, effort=replace(self.effort, screen=0))
        starts = guide.run().starts
        if self.effort.leave_one_out:
            ranked = self._ranked(count, "leave-one-out")
            starts |= {f"{name} of whole prompts": start for name, start in ranked.items()}
        self.board.ask(guide.measured()[: max(1, self.effort.finalists)], near=none)
        self._swap(self.measured()[0], guide)
        return starts

    def _look(self, none: Candidate, count: int) -> dict[str, Candidate]:
        """Make a set of each kind, and swap layers of the best two; the board remembers all."""
        earlier = [c for c in self.measured() if len(self._layers(c)) == count]
        starts = {
            "measured before": next(iter(earlier), none),
            "block": self._best_block(count),
            **self._ranked(count, "add-one"),
            **self._ranked(count, "leave-one-out"),
            "eliminated": self._eliminate(count),
            "greedy": self._grow(none, count),
        }
        half = self._best_block(max(1, count // 2))
        starts["greedy from a block"] = self._grow(half, count)
        ranked = sorted(dict.fromkeys(starts.values()), key=self.board.value)
        for start in ranked[:2]:
            self._swap(start, self)
        return starts

    def _swapped(self, count: int) -> Candidate:
        """The KV heads that rank first, and what swaps make of them; the board remembers all."""
        assert self.ranked is not None, "KV heads are ranked before they are searched"
        start = self._ask([top(self.ranked, count)], self._with(()))[0]
        self._swap(start, self)
        return start

    @property
    def units(self) -> tuple[Unit, ...]:
        """What the role may be given to: layers, or KV heads."""
        return self.board.units(self.role)

    def capacity(self) -> int:
        """The most layers, or KV heads, that the budget pays for."""
        units = self.units
        fits = (n for n in range(len(units), -1, -1) if self._allowed(self._with(units[:n])))
        return next(fits, 0)

    def _with(self, layers: Iterable[Unit]) -> Candidate:
        return self.knobs.with_layers(self.role, layers)

    def _layers(self, candidate: Candidate) -> frozenset[Any]:
        return candidate.layers(self.role)

    def _allowed(self, candidate: Candidate) -> bool:
        return self.budget.allows(self.prices.of(candidate))

    def _ask(self, sets: Iterable[Iterable[Unit]], near: Candidate) -> list[Candidate]:
        # Where only generated tokens or last rows differ, one reference serves every set.
        near = self._with(()) if self.role != "full" or self.board.screen else near
        return self.board.ask([self._with(layers) for layers in sets], near=near)

    def _best_block(self, count: int) -> Candidate:
        step = max(1, count // 4)
        return self._ask(blocks(self.board.able, count, step=step), self._with(()))[0]

    def _ranked(self, count: int, direction: Direction) -> dict[str, Candidate]:
        """The layers that matter most alone, by each objective; the same passes measure both."""
        sets = {}
        for objective in get_args(Objective):
            found = importance(self.board, self.knobs, self.role, objective, direction)
            sets[f"{direction}, {objective}"] = self._with(top(found, count))
        self._ask(map(self._layers, sets.values()), self._with(()))
        return sets

    def _eliminate(self, count: int) -> Candidate:
        """Start from all layers and remove the least needed ones, several at a time."""
        kept = self._with(self.board.able)
        while len(self._layers(kept)) > count:
            layers = self._layers(kept)
            without = {layer: layers - {layer} for layer in sorted(layers)}
            ranked = self._ask(without.values(), kept)
            surplus = len(layers) - count
            drop = min(surplus, max(1, round(self.effort.dropped * len(layers))))
            gone = frozenset().union(*(layers - self._layers(c) for c in ranked[:drop]))
            kept = self._ask([layers - gone], kept)[0]
        return kept

    def _grow(self, start: Candidate, count: int) -> Candidate:
        """Add the layer that helps most, again and again, up to ``count`` layers."""
        current, order = start, list(self.board.able)
        while len(self._layers(current)) < count:
            layers = self._layers(current)
            tried = [layer for layer in order if layer not in layers]
            ranked = self._ask([layers | {layer} for layer in tried], current)
            gains = [next(iter(self._layers(c) - layers)) for c in ranked]
            order = gains[: self.effort.additions]
            current = ranked[0]
            if len(order) < 2:
                order = [layer for layer in self.board.able if layer not in self._layers(current)]
        return current

    def _swap(self, start: Candidate, guide: Search) -> None:
        """Exchange layers while that helps: the least needed for those that would help most.

        Args:
            start: the first set.
            guide: chooses those layers: this search, or one whose passes cost less.
        """
        current = start
        for _ in range(self.effort.rounds):
            layers = self._layers(current)
            outside = [unit for unit in self.units if unit not in layers]
            less = guide._ask([layers - {layer} for layer in sorted(layers)], current)
            more = guide._ask([layers | {layer} for layer in outside], current)
            n = self.effort.pairs
            pairs = [
                self._layers(fewer) | (self._layers(larger) - layers)
                for fewer in less[:n]
                for larger in more[:n]
            ]
            fitting = [self._with(p) for p in pairs if self._allowed(self._with(p))]
            # A layer that is not needed at all is given back: the budget need not be spent.
            fitting += less[:1] + [c for c in more[:1] if self._allowed(c)]
            best = self._ask([self._layers(c) for c in fitting], current)[0] if fitting else current
            if self.board.value(best) > self.board.value(current) - self.effort.gain:
                return
            current = best
