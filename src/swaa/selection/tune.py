"""From a model and questions to the cheapest recipe that keeps the answers."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa import results
from swaa.evaluation.comparison import Comparison
from swaa.evaluation.samples_file import SamplesFile
from swaa.evaluation.sources import LocalModel
from swaa.evaluation.tasks import Task
from swaa.integrations.transformers.support import find_layers
from swaa.models import LoadedModel
from swaa.selection import calibration, report
from swaa.selection.baselines import Baseline, baselines, ranking
from swaa.selection.board import FULL, Board, Objective
from swaa.selection.budget import Budget, Prices
from swaa.selection.calibration import FULL_ATTENTION, GivenSamples, Split
from swaa.selection.candidate import Candidate
from swaa.selection.expected import expected, how_many, watch
from swaa.selection.passes import SharedPasses, TeacherForced
from swaa.selection.report import Point
from swaa.selection.search import Search
from swaa.selection.signals import top
from swaa.selection.signals.lazy_ratio import lazy_ratio
from swaa.selection.spaces import Space, least, spaces
from swaa.selection.tuning import HELD_OUT, KIND, LADDER, Progress, Say, Tuned, Tuning, check_method
from swaa.shapes import shape_of


@dataclass(frozen=True)
class _Data:
    """Samples, ready to use."""

    split: Split
    forced: tuple[TeacherForced, ...]
    gold: bool
    report: tuple[Task, ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt that recipes are priced at: the median."""
        lengths = sorted(sample.length for sample in self.split.calibration)
        return lengths[len(lengths) // 2]


def tune(
    loaded: LoadedModel,
    name: str,
    tuning: Tuning,
    *,
    backend: str = "auto",
    progress: Progress | None = None,
    say: Say | None = None,
) -> Tuned:
    """Search, then measure what was found on samples held out.

    Everything measured is kept in ``folder``: the same call resumes after an interruption.

    Args:
        loaded: model and tokenizer; not adapted.
        name: of the model, as typed.
        tuning: what is to be found.
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
        check_method(tuning.method)
        if tuning.base.selected_layers:
            raise ValueError(
                "the recipe has selected layers, which no search keeps yet: tune from one without,"
                " or with --selected-layers none"
            )
        self.tuning, self.loaded, self.backend = tuning, loaded, backend
        self.source = LocalModel(loaded, name, backend=backend)
        self.progress = progress or (lambda _share, _label: None)
        self.say = say or (lambda _line: None)
        self.able = tuple(sorted(find_layers(loaded.model).full))
        self.depth = loaded.model.config.num_hidden_layers
        # Layers that the recipe leaves full decode as it says of all once they slide.
        bare = dataclasses.replace(tuning.base, full_layers=())
        self.base = Candidate.of(bare, self.able, self.depth)
        given = tuning.budgets or [Budget.parse(text) for text in LADDER]
        self.budgets = [(budget, budget.whole_layers(len(self.able))) for budget in given]
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []

    def execute(self) -> Tuned:
        started = time.perf_counter()
        data = self._timed("data", self._data)
        prices = Prices(shape_of(self.loaded.model.config), self.able, data.length)
        self.budgets = self._feasible(prices)
        points = self._timed("search", lambda: self._search(data, prices))
        points = self._timed("verify", lambda: self._verify(data, points))
        config = self._identity(data)
        provenance = results.record_provenance(
            device=self.source.device,
            dtype=self.loaded.model.dtype,
            model=self.source.model,
            model_revision=self.source.revision,
            data=self.tuning.task.name,
            data_revision=self.tuning.task.describe().get("data_revision"),
            seed=self.tuning.seed,
            seconds=time.perf_counter() - started,
        )
        result = results.Result(
            kind=KIND,
            name=self._name("tune"),
            config=config,
            rows=tuple(report.rows(points, points[0])),
            provenance=provenance,
        )
        path = results.save(result, folder=self.tuning.folder)
        return Tuned(tuple(points), path, provenance, self.seconds, tuple(self.notes))

    def _timed(self, stage: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[stage] = round(time.perf_counter() - started, 2)

    # Samples

    def _data(self) -> _Data:
        tuning, prompt = self.tuning, self.tuning.prompt
        self.progress(0.0, "samples")
        own = not tuning.report_on or tuning.task.name in [t.name for t in tuning.report_on]
        more = (tuning.held_out or HELD_OUT) if own else 0
        count = tuning.samples + more if tuning.task.needs_length else None
        samples = tuning.task.samples(prompt, length=tuning.length, count=count, seed=tuning.seed)
        if any(not sample.answers and "gold" not in sample.tags for sample in samples):
            raise ValueError(
                f"{tuning.task.name} has no answers to tune on; give a task that asks questions"
            )
        parts = calibration.split(
            tuning.task,
            samples,
            calibration=tuning.samples,
            held_out=tuning.held_out if own else 0,
            seed=tuning.seed,
            too_long=lambda: calibration.count_longer(tuning.task, prompt, tuning.length),
        )
        # Of other tasks, too: what is wrong with their prompts would else show after the search.
        others = [task for task in tuning.report_on if task.name != tuning.task.name]
        reported = [
            task.samples(prompt, length=tuning.length, count=tuning.held_out, seed=tuning.seed)
            for task in others
        ]
        calibration.require_room(
            [*parts.calibration, *parts.held_out, *itertools.chain(*reported)],
            prompt,
            context=self.source.context,
            model=self.source.model,
        )
        calibration.require_reach(
            parts.calibration,
            window=self.base.window,
            sink_tokens=self.base.sink_tokens,
            length=tuning.length,
        )
        gold = all(sample.answers for sample in samples)
        if gold:
            forced = calibration.gold(prompt, parts.calibration)
        else:
            parts, forced = self._own_answers(parts)
        return _Data(parts, tuple(forced), gold, tuple(self._reported(parts)))

    def _own_answers(self, parts: Split) -> tuple[Split, list[TeacherForced]]:
        engine = self.source.engine(FULL_ATTENTION)
        with self.source.running(engine):
            answered, forced = calibration.own_answers(
                self.tuning.prompt,
                [*parts.calibration, *parts.held_out],
                engine,
                batch_size=self.tuning.batch_size,
            )
        count = len(parts.calibration)
        split = Split(calibration=tuple(answered[:count]), held_out=tuple(answered[count:]))
        return split, forced[:count]

    def _reported(self, parts: Split) -> list[Task]:
        """Tasks to report on; other ones are asked as `swaa eval` asks them: its runs are found."""
        own = self.tuning.task
        return [
            GivenSamples(own, parts.held_out) if task.name == own.name else task
            for task in self.tuning.report_on or (own,)
        ]

    # Search

    def _spaces(self, budget: Budget) -> list[Space]:
        return spaces(self.base, self.tuning.tries, budget)

    def _feasible(self, prices: Prices) -> list[tuple[Budget, Budget]]:
        """The budgets that can be met; one that was given and cannot is an error."""
        found = []
        for typed, budget in self.budgets:
            lowest = least(self._spaces(budget), prices)
            if lowest is None:
                found.append((typed, budget))
            elif self.tuning.budgets:
                raise ValueError(f"the budget {typed} cannot be met: {lowest}")
        return found

    def _search(self, data: _Data, prices: Prices) -> list[Point]:
        tuning = self.tuning
        identity = self._board_identity(data)
        file = results.result_path(KIND, self._name("scores"), identity, folder=tuning.folder)
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
        )
        lazy = self._lazy(data)
        with SamplesFile(file.with_suffix(".jsonl")) as opened, passes:
            objective: Objective = tuning.objective or ("nll" if data.gold else "kl")
            board = Board(passes, opened, objective)
            groups = [self._searches(board, prices, budget) for _, budget in self.budgets]
            watched = self._announce(data, groups, sum(s["id"] != FULL for s in opened.samples))
            full = board.full_scores()
            # To compare with: what layers add to the recipe's other knobs.
            board.ask([self.base], near=self.base)
            points = [report.point("full", "full", FULL_ATTENTION, prices.full(), full)]
            looked: list[tuple[str, list[Search], list[Baseline]]] = []
            for (typed, _), searches in zip(self.budgets, groups, strict=True):
                board.on_pass = next(watched)
                # First what searches start from too.
                others = self._baselines(searches[0], typed, lazy)
                looked.append((str(typed).replace("/", "of"), searches, others))
                if self.tuning.method == "search":
                    for search in searches:
                        search.run()
                self._best(searches, lazy)
            named = self._named(looked, lazy)
            named.setdefault(self.base, []).append(("no full layers", "base"))
            for candidate, names in named.items():
                # Of those that named a set, the method is what a user asked for.
                (name, source), *others = sorted(names, key=lambda n: n[1] != self.tuning.method)
                config = candidate.config(self.able)
                scores = board.scores(candidate)
                point = report.point(name, source, config, prices.of(candidate), scores)
                also = tuple(other for other, _ in others)
                points.append(dataclasses.replace(point, also=also))
        return points

    def _searches(self, board: Board, prices: Prices, budget: Budget) -> list[Search]:
        """A search for each space of a budget that can meet it."""
        return [
            Search(board, prices, budget, space.knobs, space.role, self.tuning.effort)
            for space in self._spaces(budget)
            if budget.allows(prices.of(space.knobs))
        ]

    def _named(
        self, looked: Sequence[tuple[str, list[Search], list[Baseline]]], lazy: dict[int, float]
    ) -> dict[Candidate, list[tuple[str, str]]]:
        """What is reported, with its names and sources.

        Chosen only now: what a search under one budget measured may be the best under another.
        """
        found: dict[Candidate, list[tuple[str, str]]] = {}
        for label, searches, others in looked:
            best = self._best(searches, lazy)
            found.setdefault(best, []).append((f"tuned {label}", self.tuning.method))
            for candidate, name, source in others:
                found.setdefault(candidate, []).append((f"{name} {label}", source))
        return found

    def _announce(
        self, data: _Data, groups: Sequence[Sequence[Search]], known: int
    ) -> Iterator[Callable[[float], None]]:
        """Say what there is to do; what boards call for each budget then shows how it goes."""
        method, parts = self.tuning.method, data.split
        amounts = expected(groups, method, baselines=self.tuning.baselines)
        lengths = [sample.length for sample in (*parts.calibration, *parts.held_out)]
        others = len(parts.held_out) or "no"
        found = f"; {known:,} found measured" if known else ""
        self.say(
            f"{len(parts.calibration)} samples to tune on, {others} others held out,"
            f" {min(lengths):,} to {max(lengths):,} tokens; budgets: {len(groups)},"
            f" {how_many(amounts, method)} sets of layers to measure{found}"
        )
        return watch(amounts, method, lambda share, label: self.progress(0.6 * share, label))

    def _best(self, searches: Sequence[Search], lazy: dict[int, float]) -> Candidate:
        """The best candidate over all spaces of a budget."""
        board = searches[0].board
        if self.tuning.method == "search":
            return min((search.measured()[0] for search in searches), key=board.value)
        best: list[Candidate] = []
        for search in searches:
            ranked = ranking(search, self.tuning.method, lazy)
            chosen = search.knobs.with_layers(search.role, top(ranked, search.capacity()))
            best += board.ask([chosen], near=search.knobs)
        return min(best, key=board.value)

    def _lazy(self, data: _Data) -> dict[int, float]:
        if not (self.tuning.baselines or self.tuning.method.startswith("lazy_ratio")):
            return {}
        return lazy_ratio(
            self.loaded,
            data.forced,
            window=self.base.window,
            sink_tokens=self.base.sink_tokens,
            backend=self.backend,
        )

    def _baselines(self, search: Search, typed: Budget, lazy: dict[int, float]) -> list[Baseline]:
        """What to compare with, in the first space: at the base's own knobs, where they can be."""
        if not self.tuning.baselines:
            return []
        found = baselines(search, lazy)
        if not found:
            self.notes.append(
                f"--baselines adds nothing to {typed}: it pays for no {search.role} layer,"
                " so that there is none to choose"
            )
        return found

    # Verification

    def _verify(self, data: _Data, points: Sequence[Point]) -> list[Point]:
        comparison = Comparison(
            settings=[(point.name, point.config) for point in points],
            tasks=list(data.report),
            lengths=[self.tuning.length],
            prompt=self.tuning.prompt,
            count=self.tuning.held_out,
            seed=self.tuning.seed,
            folder=self.tuning.folder,
            batch_size=self.tuning.batch_size,
        )
        outcomes = comparison.execute(
            self.source,
            progress=lambda share, label: self.progress(0.6 + 0.4 * share, f"verify {label}"),
        )
        return [report.with_scores(point, outcomes) for point in points]

    # Names

    def _name(self, what: str) -> str:
        task = "".join(c if c.isalnum() else "-" for c in self.tuning.task.name.lower())
        model = "".join(c if c.isalnum() or c == "." else "-" for c in self.source.model.lower())
        return f"{Path(model).name}-{task}-{what}".strip("-.")

    def _board_identity(self, data: _Data) -> dict[str, Any]:
        """Everything that scores depend on."""
        tuning = self.tuning
        return {
            "model": self.source.model,
            "model_revision": self.source.revision,
            "task": GivenSamples(tuning.task, data.split.calibration).describe(),
            "prompt": tuning.prompt.describe(),
            "length": tuning.length,
            "seed": tuning.seed,
            "batch_size": tuning.batch_size,
            "engine": self.source.engine(FULL_ATTENTION).describe(),
        }

    def _identity(self, data: _Data) -> dict[str, Any]:
        """Everything that tells this tuning from another."""
        tuning = self.tuning
        return {
            **self._board_identity(data),
            "base": tuning.base.to_dict(),
            "tries": {name: list(values) for name, values in tuning.tries.items()},
            "budgets": [str(typed) for typed, _ in self.budgets],
            "method": tuning.method,
            "objective": tuning.objective,
            "effort": dataclasses.asdict(tuning.effort),
            "baselines": tuning.baselines,
            "report": [task.describe() for task in data.report],
        }
