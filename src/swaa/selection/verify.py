"""Measure what recipes keep: answers to held-out questions, and continued text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from swaa.config import LayerPlan
from swaa.evaluation.comparison import Comparison
from swaa.evaluation.sources import LocalModel
from swaa.evaluation.tasks import Task, find_tasks
from swaa.models import LoadedModel
from swaa.selection.batches import TeacherForced
from swaa.selection.candidate import Candidate
from swaa.selection.continuation import NAME as CONTINUATION
from swaa.selection.continuation import kept_scores, make_texts
from swaa.selection.data import Data
from swaa.selection.passes import Plans, SharedPasses
from swaa.selection.report import Point
from swaa.selection.tuning import HELD_OUT_OF_EACH, MIXTURE, Progress, Tuning

LONGER = 2
"""Longer prompts have this many times the tokens of those tuned on, where the model allows it."""

LEAST_LONGER = 1.5
"""The least such factor: with less, longer prompts say nothing new."""


class Further(NamedTuple):
    """Further measurements, for the choice and full attention.

    Attributes:
        points: with their new scores.
        length: of the prompts (tokens); 0: nothing was measured.
        notes: one line each: what was not measured, and why.
    """

    points: list[Point]
    length: int
    notes: list[str]


@dataclass(frozen=True)
class Verification:
    """Measures recipes on samples that no search saw.

    Attributes:
        tuning: what was asked for.
        loaded: model and tokenizer; not adapted.
        source: the same model, for generated answers.
        base: knobs that the search began with.
        able: layers that can slide.
        kv_heads: of each layer of the model.
        backend: attention backend.
        progress: called with a share of the whole tuning.
    """

    tuning: Tuning
    loaded: LoadedModel
    source: LocalModel
    base: Candidate
    able: tuple[int, ...]
    kv_heads: Sequence[int]
    backend: str
    progress: Progress

    def held_out(self, points: Sequence[Point], data: Data) -> list[Point]:
        """The points with their scores on held-out samples."""
        count, length = self.tuning.held_out, self.tuning.length
        scores = self._ask(points, data.report, length=length, count=count, share=(0.6, 0.8))
        self._continue(points, data.texts.held_out if data.texts else (), scores)
        return [dataclasses.replace(point, scores=scores[point.name]) for point in points]

    def longer(self, points: Sequence[Point], data: Data) -> Further:
        """The points with their scores on the same kinds of questions in longer prompts."""
        length, count = self.tuning.length, self.tuning.held_out_of_each
        tasks = [task for task in self.tuning.report_on or self.tuning.tasks if task.needs_length]
        if length is None or not (tasks or data.texts):
            return Further(list(points), 0, [])
        longer, context = LONGER * length, self.source.context
        if context is not None:  # the answer needs room too
            longer = min(longer, context - self._room(tasks, length))
        if longer < LEAST_LONGER * length:
            note = f"not measured at longer prompts: {self.source.model} sees {self.source.context}"
            return Further(list(points), 0, [f"{note} tokens at once"])
        scores = self._ask(points, tasks, length=longer, count=count, share=(0.8, 0.9))
        texts, notes = self._texts(longer, count) if data.texts else ((), [])
        self._continue(points, texts, scores)
        found = [dataclasses.replace(point, longer=scores[point.name]) for point in points]
        return Further(found, longer, notes)

    def others(self, points: Sequence[Point], data: Data) -> Further:
        """The points with their scores on kinds of the mixture that were not tuned on."""
        named = [*self.tuning.kinds, *(task.name for task in self.tuning.report_on)]
        known = {name.partition(":")[0] for name in named}
        length, count = data.length, self.tuning.held_out or HELD_OUT_OF_EACH
        tasks, notes = [], []
        for task in find_tasks([name for name in MIXTURE if name.partition(":")[0] not in known]):
            unfit = self._unfit(task, length)
            tasks += [] if unfit else [task]
            notes += [f"{task.name}: not measured, {unfit}"] if unfit else []
        scores = self._ask(points, tasks, length=length, count=count, share=(0.9, 1.0))
        if CONTINUATION not in known:
            texts, more = self._texts(length, count)
            notes += more
            self._continue(points, texts, scores)
        found = [dataclasses.replace(point, others=scores[point.name]) for point in points]
        return Further(found, length if any(scores.values()) else 0, notes)

    def _ask(
        self,
        points: Sequence[Point],
        tasks: Sequence[Task],
        *,
        length: int | None,
        count: int | None,
        share: tuple[float, float],
    ) -> dict[str, dict[str, Sequence[float]]]:
        """Scores of generated answers, by point and task."""
        scores: dict[str, dict[str, Sequence[float]]] = {point.name: {} for point in points}
        comparison = Comparison(
            settings=[(point.name, point.config) for point in points],
            tasks=list(tasks),
            lengths=[length],
            prompt=self.tuning.prompt,
            count=count,
            seed=self.tuning.seed,
            folder=self.tuning.folder,
            batch_size=self.tuning.batch_size,
        )
        first, last = share
        outcomes = comparison.execute(
            self.source,
            progress=lambda done, label: self.progress(
                first + (last - first) * done, f"verify {label}"
            ),
        )
        for outcome in outcomes:
            found = [sample["score"] or 0.0 for sample in outcome.samples]
            scores[outcome.run.setting][outcome.run.task.name] = found
        return scores

    def _continue(
        self,
        points: Sequence[Point],
        texts: Sequence[TeacherForced],
        scores: dict[str, dict[str, Sequence[float]]],
    ) -> None:
        """Add each point's retention on running text to the scores."""
        if not texts:
            return
        plans = [self._plans(point) for point in points]
        passes = SharedPasses(
            self.loaded,
            texts,
            batch_size=self.tuning.batch_size,
            backend=self.backend,
            tail=max(plan.dense_tail for each in plans for plan in each),
            near=self.base.near,
        )
        full: Plans = (LayerPlan(window=None),) * passes.depth
        with passes:
            for point, found in zip(points, passes.measure(full, plans, kl=True), strict=True):
                scores[point.name][CONTINUATION] = kept_scores(found.kl)

    def _plans(self, point: Point) -> Plans:
        depth = self.loaded.model.config.num_hidden_layers
        return tuple(
            plan if index in self.able else LayerPlan(window=None)
            for index, plan in enumerate(point.config.layers(depth, self.kv_heads))
        )

    def _texts(self, length: int, count: int) -> tuple[tuple[TeacherForced, ...], list[str]]:
        """Texts that share no predicted token with those tuned on, or why there are none."""
        first = self.tuning.each if self.tuning.continuation else 0
        try:
            made = make_texts(
                self.tuning.prompt,
                length=length,
                calibration=first,
                held_out=self.tuning.held_out_of_each if first else count,
                seed=self.tuning.seed,
            )
        except ValueError as error:
            return (), [f"not measured: {error}"]
        return made.held_out, []

    def _unfit(self, task: Task, length: int) -> str | None:
        """Why a task cannot make prompts of a length; ``None``: it can."""
        try:
            room = self._room([task], length)
        except ValueError as error:
            return str(error)
        context = self.source.context
        if context is not None and length + room > context:
            return f"{self.source.model} sees {context} tokens at once"
        return None

    def _room(self, tasks: Iterable[Task], length: int) -> int:
        """Tokens of the longest answer."""
        prompt, seed = self.tuning.prompt, self.tuning.seed
        samples = [task.samples(prompt, length=length, count=1, seed=seed) for task in tasks]
        return max((prompt.max_new_tokens(one) for (one,) in samples), default=0)
