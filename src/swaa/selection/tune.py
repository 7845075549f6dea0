"""From a model and questions to the cheapest recipe that keeps the answers."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from swaa import results
from swaa.evaluation.sources import LocalModel
from swaa.files import SamplesFile
from swaa.integrations.transformers.support import find_layers, kv_heads_of
from swaa.models import LoadedModel
from swaa.selection import report
from swaa.selection.baselines import (
    Baseline,
    Shares,
    baselines,
    check_baselines,
    is_wanted,
    ranking,
)
from swaa.selection.board import FULL, Board, Objective
from swaa.selection.budget import Budget, Prices
from swaa.selection.calibration import FULL_ATTENTION
from swaa.selection.candidate import Candidate
from swaa.selection.data import Data, prepare
from swaa.selection.expected import expected, how_many, watch
from swaa.selection.passes import SharedPasses
from swaa.selection.report import Point
from swaa.selection.search import Search
from swaa.selection.signals import FROM_ATTENTION, OF_HEADS, top
from swaa.selection.signals.lazy_ratio import far_attention, head_attention, lazy_ratio
from swaa.selection.spaces import Space, least, spaces
from swaa.selection.tuning import (
    KIND,
    LADDER,
    LADDER_OF_HEADS,
    Progress,
    Say,
    Tuned,
    Tuning,
    check_method,
)
from swaa.selection.verify import Verification
from swaa.shapes import shape_of

UNITS = {"layers": "layers", "heads": "KV heads", "both": "layers and KV heads"}
"""What is chosen, in words."""


def tune(
    loaded: LoadedModel,
    name: str,
    tuning: Tuning,
    *,
    backend: str = "auto",
    progress: Progress | None = None,
    say: Say | None = None,
) -> Tuned:
    """Search, then measure what was found on held-out samples.

    Everything measured is kept in ``folder``: the same call resumes after an interruption.

    Args:
        loaded: model and tokenizer; not adapted.
        name: of the model, as typed.
        tuning: what to find.
        backend: attention backend.
        progress: see :data:`Progress`.
        say: see :data:`Say`.

    Raises:
        ValueError: for a model that cannot be adapted, too few samples, answers that are missing,
            or a budget that cannot be met.
    """
    return _Run(loaded, name, tuning, backend, progress, say).execute()


class _Run:
    """One tuning under way."""

    def __init__(
        self,
        loaded: LoadedModel,
        name: str,
        tuning: Tuning,
        backend: str,
        progress: Progress | None,
        say: Say | None,
    ) -> None:
        check_method(tuning.method, tuning.units)
        check_baselines(tuning.baselines)
        if tuning.base.selected_layers:
            raise ValueError(
                "the recipe has selected layers, which no search keeps yet: tune from one without,"
                " or with --selected-layers none"
            )
        if tuning.base.decode_keys:
            raise ValueError(
                "the recipe has decode_keys, which no search keeps yet: tune with --decode-keys 0,"
                " and set them in the recipe that comes out"
            )
        self.tuning, self.loaded, self.backend = tuning, loaded, backend
        self.source = LocalModel(loaded, name, backend=backend)
        self.progress = progress or (lambda _share, _label: None)
        self.say = say or (lambda _line: None)
        layers = find_layers(loaded.model)
        self.able = tuple(sorted(layers.full))
        self.kv_heads = kv_heads_of(loaded.model, layers)
        self.depth = loaded.model.config.num_hidden_layers
        # Once a layer that the recipe leaves full slides, it decodes like every sliding layer.
        bare = dataclasses.replace(tuning.base, full_layers=())
        self.base = Candidate.of(bare, self.able, self.depth, self.kv_heads)
        ladder = LADDER_OF_HEADS if tuning.units == "heads" else LADDER
        given = tuning.budgets or [Budget.parse(text) for text in ladder]
        self.budgets = [(budget, budget.whole_layers(len(self.able))) for budget in given]
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []

    def execute(self) -> Tuned:
        started = time.perf_counter()
        self.progress(0.0, "samples")
        data = self._timed("data", lambda: prepare(self.tuning, self.source, self.base))
        prices = Prices(shape_of(self.loaded.model.config), self.able, data.length)
        self.budgets = self._feasible(prices)
        points = self._timed("search", lambda: self._search(data, prices))
        if self.tuning.held_out == 0:
            return self._unverified(data, points, started)
        verification = Verification(
            self.tuning,
            self.loaded,
            self.source,
            self.base,
            self.able,
            self.kv_heads,
            self.backend,
            self.progress,
        )
        points = self._timed("verify", lambda: verification.held_out(points, data))
        chosen, unmet = self._choose(points)
        lengths: dict[report.Role, int] = {"held out": data.length}
        points, chosen, more = self._timed(
            "further", functools.partial(self._further, verification, data, points, chosen)
        )
        lengths |= more
        self.progress(1.0, "done")
        return self._write(data, points, chosen, unmet, lengths, started)

    def _choose(self, points: Sequence[Point]) -> tuple[Point | None, str]:
        """The cheapest recipe found by the method that keeps enough; or why there is none."""
        tuning, (full, *others) = self.tuning, points
        self.notes += report.unmeasurable(full)
        own = [point for point in others if point.source == tuning.method]
        try:
            return report.choose(own, full, tuning.keep, average=tuning.keep_mean), ""
        except ValueError as error:
            return None, str(error)

    def _further(
        self, verification: Verification, data: Data, points: list[Point], chosen: Point | None
    ) -> tuple[list[Point], Point | None, dict[report.Role, int]]:
        """Longer prompts and other kinds of questions, for the choice and full attention."""
        if chosen is None:
            return points, None, {}
        longer = verification.longer([points[0], chosen], data)
        others = verification.others(longer.points, data)
        self.notes += [*longer.notes, *others.notes]
        full, found = others.points
        lengths: dict[report.Role, int] = {"longer": longer.length, "other": others.length}
        made = [full, *(found if point is chosen else point for point in points[1:])]
        return made, found, {role: length for role, length in lengths.items() if length}

    def _unverified(self, data: Data, points: Sequence[Point], started: float) -> Tuned:
        """The choice as it is: nothing was held out to report on."""
        chosen = next(point for point in points if point.source == self.tuning.method)
        self.progress(1.0, "done")
        note = "nothing was held out: ask 'swaa eval' what the recipe keeps"
        return Tuned(
            tuple(points),
            chosen,
            "",
            self._scores_file(data),
            self._provenance(started),
            {},
            self.seconds,
            (*self.notes, note),
        )

    def _provenance(self, started: float) -> results.Provenance:
        revisions = [task.describe().get("data_revision") for task in self.tuning.tasks]
        return results.record_provenance(
            device=self.source.device,
            dtype=self.loaded.model.dtype,
            model=self.source.model,
            model_revision=self.source.revision,
            data=", ".join(self.tuning.kinds),
            data_revision=", ".join(filter(None, revisions)) or None,
            seed=self.tuning.seed,
            seconds=time.perf_counter() - started,
        )

    def _scores_file(self, data: Data) -> Path:
        """Where scores on the samples tuned on are kept, one set a line."""
        name, folder = self._name("scores"), self.tuning.folder
        path = results.result_path(KIND, name, self._board_identity(data), folder=folder)
        return path.with_suffix(".jsonl")

    def _write(
        self,
        data: Data,
        points: Sequence[Point],
        chosen: Point | None,
        unmet: str,
        lengths: Mapping[report.Role, int],
        started: float,
    ) -> Tuned:
        provenance = self._provenance(started)
        result = results.Result(
            kind=KIND,
            name=self._name("tune"),
            config=self._identity(data),
            rows=tuple(report.rows(points, points[0], lengths)),
            provenance=provenance,
        )
        path = results.save(result, folder=self.tuning.folder)
        notes = tuple(self.notes)
        return Tuned(tuple(points), chosen, unmet, path, provenance, lengths, self.seconds, notes)

    def _timed(self, stage: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[stage] = round(time.perf_counter() - started, 2)

    # Search

    def _spaces(self, budget: Budget) -> list[Space]:
        return spaces(self.base, self.tuning.tries, budget, self.tuning.units)

    def _feasible(self, prices: Prices) -> list[tuple[Budget, Budget]]:
        """The budgets that can be met; a user's budget that cannot be met is an error."""
        found = []
        for typed, budget in self.budgets:
            lowest = least(self._spaces(budget), prices)
            if lowest is None:
                found.append((typed, budget))
            elif self.tuning.budgets:
                raise ValueError(f"the budget {typed} cannot be met: {lowest}")
        return found

    def _search(self, data: Data, prices: Prices) -> list[Point]:
        tuning = self.tuning
        tails = {self.base.dense_tail, *tuning.tries.get("dense_tail", ())}
        looked_at = [space for _, budget in self.budgets for space in self._spaces(budget)]
        if any(space.role == "full" for space in looked_at):
            tails.add(tuning.effort.screen)
        passes = SharedPasses(
            self.loaded,
            data.forced,
            batch_size=tuning.batch_size,
            backend=self.backend,
            tail=max(tails),
            near=self.base.near,
        )
        shares = self._shares(data)
        with SamplesFile(self._scores_file(data)) as opened, passes:
            # Likelihoods of different kinds of answers differ in scale more than divergences do.
            alike: Objective = "nll" if data.gold and len(tuning.kinds) == 1 else "kl"
            board = Board(passes, opened, tuning.objective or alike)
            groups = [self._searches(board, prices, budget, shares) for _, budget in self.budgets]
            watched = self._announce(data, groups, sum(s["id"] != FULL for s in opened.samples))
            full = board.full_scores()
            # For comparison: what full layers add to the recipe's other knobs.
            board.ask([self.base], near=self.base)
            points = [report.point("full", "full", FULL_ATTENTION, prices.full(), full)]
            looked: list[tuple[str, list[Search], list[Baseline]]] = []
            for (typed, _), searches in zip(self.budgets, groups, strict=True):
                board.on_pass = next(watched)
                # Baselines come first, because searches start from them too.
                others = self._baselines(searches[0], typed, shares)
                looked.append((str(typed).replace("/", "of"), searches, others))
                if self.tuning.method == "search":
                    for search in searches:
                        search.run()
                self._best(searches, shares)
            named = self._named(looked, shares)
            named.setdefault(self.base, []).append(("no full layers", "base"))
            for candidate, names in named.items():
                # Of several names for one set, that of the user's method comes first.
                (name, source), *others = sorted(names, key=lambda n: n[1] != self.tuning.method)
                config = candidate.config(self.able)
                scores = board.scores(candidate)
                point = report.point(name, source, config, prices.of(candidate), scores)
                also = tuple(other for other, _ in others)
                points.append(dataclasses.replace(point, also=also))
        return points

    def _searches(
        self, board: Board, prices: Prices, budget: Budget, shares: Shares
    ) -> list[Search]:
        """A search for each space of a budget in which the budget can be met."""
        ranked = shares.get(OF_HEADS)
        return [
            Search(board, prices, budget, space.knobs, space.role, self.tuning.effort, ranked)
            for space in self._spaces(budget)
            if budget.allows(prices.of(space.knobs))
        ]

    def _named(
        self, looked: Sequence[tuple[str, list[Search], list[Baseline]]], shares: Shares
    ) -> dict[Candidate, list[tuple[str, str]]]:
        """The reported candidates, with their names and sources.

        Chosen only after all searches: the best for one budget may be measured under another.
        """
        found: dict[Candidate, list[tuple[str, str]]] = {}
        for label, searches, others in looked:
            by_unit = _by_unit(searches)
            for units, own in by_unit.items():
                named = f"tuned {label}" if len(by_unit) == 1 else f"{units} {label}"
                found.setdefault(self._best(own, shares), []).append((named, self.tuning.method))
            for candidate, name, source in others:
                found.setdefault(candidate, []).append((f"{name} {label}", source))
        return found

    def _announce(
        self, data: Data, groups: Sequence[Sequence[Search]], known: int
    ) -> Iterator[Callable[[float], None]]:
        """Say what is to be done; yields, for each budget, the board's callback for progress."""
        method = self.tuning.method
        amounts = expected(groups, method, baselines=bool(self.tuning.baselines))
        lengths, others = data.lengths, data.held_out or "no"
        found = f"; {known:,} found measured" if known else ""
        self.say(
            f"{len(data.forced)} samples to tune on, {others} others held out,"
            f" {min(lengths):,} to {max(lengths):,} tokens; budgets: {len(groups)},"
            f" {how_many(amounts, method)} sets of {UNITS[self.tuning.units]} to measure{found}"
        )
        return watch(amounts, method, lambda share, label: self.progress(0.6 * share, label))

    def _best(self, searches: Sequence[Search], shares: Shares) -> Candidate:
        """The best candidate over all spaces of a budget."""
        board = searches[0].board
        if self.tuning.method == "search":
            return min((search.measured()[0] for search in searches), key=board.value)
        best: list[Candidate] = []
        for search in searches:
            ranked = ranking(search, self.tuning.method, shares)
            chosen = search.knobs.with_layers(search.role, top(ranked, search.capacity()))
            best += board.ask([chosen], near=search.knobs)
        return min(best, key=board.value)

    def _shares(self, data: Data) -> Shares:
        """The results of those signals from attention that are asked for."""
        wanted = [
            name
            for name in FROM_ATTENTION
            if name == self.tuning.method
            or is_wanted(name, self.tuning.baselines)
            or (name == OF_HEADS and self.tuning.units != "layers")
        ]
        knobs = {"window": self.base.window, "sink_tokens": self.base.sink_tokens}
        found: dict[str, dict[Any, float]] = {}
        if any(name.startswith("lazy_ratio") for name in wanted):
            lazy = lazy_ratio(self.loaded, data.forced, backend=self.backend, **knobs)
            found["lazy_ratio"] = {layer: -share for layer, share in lazy.items()}
            found["lazy_ratio_reversed"] = lazy
        if "far_attention" in wanted:
            far = far_attention(self.loaded, data.forced, backend=self.backend, **knobs)
            found["far_attention"] = far
        if OF_HEADS in wanted:
            heads = head_attention(self.loaded, data.forced, backend=self.backend, **knobs)
            found[OF_HEADS] = heads
        return found

    def _baselines(self, search: Search, typed: Budget, shares: Shares) -> list[Baseline]:
        """The baselines, in a budget's first space: at the base's own knobs, where possible."""
        if not self.tuning.baselines:
            return []
        found = baselines(search, self.tuning.baselines, shares)
        if not found:
            self.notes.append(
                f"--baselines adds nothing to {typed}: it pays for no {search.role} layer,"
                " so that there is none to choose"
            )
        return found

    # Names

    def _name(self, what: str) -> str:
        kinds = self.tuning.kinds
        name = kinds[0] if len(kinds) == 1 else "mixture"
        task = "".join(c if c.isalnum() else "-" for c in name.lower())
        model = "".join(c if c.isalnum() or c == "." else "-" for c in self.source.model.lower())
        return f"{Path(model).name}-{task}-{what}".strip("-.")

    def _board_identity(self, data: Data) -> dict[str, Any]:
        """Everything that scores depend on."""
        tuning = self.tuning
        return {
            "model": self.source.model,
            "model_revision": self.source.revision,
            "tasks": data.describe(),
            "near": [self.base.window, self.base.sink_tokens],
            "prompt": tuning.prompt.describe(),
            "length": tuning.length,
            "seed": tuning.seed,
            "batch_size": tuning.batch_size,
            "engine": self.source.engine(FULL_ATTENTION).describe(),
        }

    def _identity(self, data: Data) -> dict[str, Any]:
        """Everything that distinguishes this tuning."""
        tuning = self.tuning
        return {
            **self._board_identity(data),
            "base": tuning.base.to_dict(),
            "tries": {name: list(values) for name, values in tuning.tries.items()},
            "budgets": [str(typed) for typed, _ in self.budgets],
            "method": tuning.method,
            "objective": tuning.objective,
            "effort": dataclasses.asdict(tuning.effort),
            **({"units": tuning.units} if tuning.units != "layers" else {}),
            "baselines": list(tuning.baselines),
            "keep": [tuning.keep, tuning.keep_mean],
            "report": [task.describe() for task in data.report],
        }


def _by_unit(searches: Sequence[Search]) -> dict[str, list[Search]]:
    """Searches for layers, and those for KV heads."""
    found: dict[str, list[Search]] = {}
    for search in searches:
        found.setdefault("heads" if search.role == "heads" else "layers", []).append(search)
    return found
