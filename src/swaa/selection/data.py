"""A tuning's samples: for each kind of question some to tune on, and others held out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swaa.evaluation.sample import Sample
from swaa.evaluation.sources import LocalModel
from swaa.evaluation.tasks import Task
from swaa.selection import calibration
from swaa.selection.batches import TeacherForced
from swaa.selection.calibration import FULL_ATTENTION, GivenSamples, Split
from swaa.selection.candidate import Candidate
from swaa.selection.continuation import Texts, make_texts
from swaa.selection.tuning import Tuning


@dataclass(frozen=True)
class Asked:
    """One task's samples, ready to use.

    Attributes:
        task: gives and scores them.
        split: samples to tune on, and held out.
        forced: the samples to tune on, with the tokens of their answers.
        gold: whether the answers came with the samples; otherwise they are full attention's own.
    """

    task: Task
    split: Split
    forced: tuple[TeacherForced, ...]
    gold: bool


@dataclass(frozen=True)
class Data:
    """Everything tuned on, and everything reported on.

    Attributes:
        asked: by task.
        texts: running text, if it is tuned on too.
        report: tasks to report on.
    """

    asked: tuple[Asked, ...]
    texts: Texts | None
    report: tuple[Task, ...]

    @property
    def forced(self) -> list[TeacherForced]:
        """All samples tuned on."""
        texts = self.texts.calibration if self.texts else ()
        return [*itertools.chain(*(one.forced for one in self.asked)), *texts]

    @property
    def gold(self) -> bool:
        """Whether every sample came with its answer."""
        return self.texts is None and all(one.gold for one in self.asked)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt to tune on, in order of size."""
        found = [sample.length for one in self.asked for sample in one.split.calibration]
        if self.texts:
            found += [self.texts.length] * len(self.texts.calibration)
        return sorted(found)

    @property
    def length(self) -> int:
        """Prompt length at which recipes are priced: the median (tokens)."""
        return self.lengths[len(self.lengths) // 2]

    @property
    def held_out(self) -> int:
        """Number of held-out samples of all kinds."""
        texts = len(self.texts.held_out) if self.texts else 0
        return sum(len(one.split.held_out) for one in self.asked) + texts

    def describe(self) -> list[dict[str, Any]]:
        """What distinguishes these samples."""
        asked = [GivenSamples(one.task, one.split.calibration).describe() for one in self.asked]
        return asked + ([self.texts.describe()] if self.texts else [])


def prepare(tuning: Tuning, source: LocalModel, base: Candidate) -> Data:
    """Make all samples, so that mistakes in them show now, not after the search.

    Args:
        tuning: what is asked for.
        source: the model.
        base: knobs that the search begins with.

    Raises:
        ValueError: for too few samples, missing answers, prompts that are too long for the
            model, and prompts that a window shows completely.
    """
    _make_others(tuning, source)
    texts = _read(tuning, source, base) if tuning.continuation else None
    asked = tuple(_ask(task, tuning, source, base) for task in tuning.tasks)
    own = {one.task.name: one.split.held_out for one in asked}
    report = tuple(
        # Other tasks are asked as in `swaa eval`, so that its finished runs are found.
        GivenSamples(task, own[task.name]) if own.get(task.name) else task
        for task in tuning.report_on or tuning.tasks
    )
    return Data(asked, texts, report)


def _make_others(tuning: Tuning, source: LocalModel) -> None:
    """Check prompts of tasks that are only reported on now: later, mistakes would show late."""
    own = [task.name for task in tuning.tasks]
    others = [
        # Prompts made to a length all have the same length.
        task.samples(
            tuning.prompt,
            length=tuning.length,
            count=1 if task.needs_length else tuning.held_out,
            seed=tuning.seed,
        )
        for task in tuning.report_on
        if task.name not in own
    ]
    _require_room(list(itertools.chain(*others)), tuning, source)


def _ask(task: Task, tuning: Tuning, source: LocalModel, base: Candidate) -> Asked:
    prompt = tuning.prompt
    own = not tuning.report_on or task.name in [other.name for other in tuning.report_on]
    held_out = tuning.held_out_of_each if task.needs_length else tuning.held_out
    held_out = held_out if own else 0
    count = tuning.each + (held_out or 0) if task.needs_length else None
    samples = task.samples(prompt, length=tuning.length, count=count, seed=tuning.seed)
    if any(not sample.answers and "gold" not in sample.tags for sample in samples):
        raise ValueError(
            f"{task.name} has no answers to tune on; give a task that asks questions, or"
            " continuation, which predicts text"
        )
    parts = calibration.split(
        task,
        samples,
        calibration=tuning.each,
        held_out=held_out,
        seed=tuning.seed,
        too_long=lambda: calibration.count_longer(task, prompt, tuning.length),
    )
    _require_room([*parts.calibration, *parts.held_out], tuning, source)
    _require_reach([sample.length for sample in parts.calibration], tuning, base)
    gold = all(sample.answers for sample in samples)
    if gold:
        forced = calibration.gold(prompt, parts.calibration)
    else:
        parts, forced = _own_answers(parts, tuning, source)
    return Asked(task, parts, tuple(forced), gold)


def _read(tuning: Tuning, source: LocalModel, base: Candidate) -> Texts:
    """Running text, part of it to tune on."""
    length = tuning.length
    assert length is not None, "a tuning with running text has a length"
    if source.context is not None and length > source.context:
        raise ValueError(
            f"texts of {length} tokens; {source.model} sees {source.context} at once: lower"
            " --length"
        )
    _require_reach([length] * tuning.each, tuning, base)
    return make_texts(
        tuning.prompt,
        length=length,
        calibration=tuning.each,
        held_out=tuning.held_out_of_each,
        seed=tuning.seed,
    )


def _own_answers(
    parts: Split, tuning: Tuning, source: LocalModel
) -> tuple[Split, list[TeacherForced]]:
    engine = source.engine(FULL_ATTENTION)
    with source.running(engine):
        answered, forced = calibration.own_answers(
            tuning.prompt,
            [*parts.calibration, *parts.held_out],
            engine,
            batch_size=tuning.batch_size,
        )
    count = len(parts.calibration)
    split = Split(calibration=tuple(answered[:count]), held_out=tuple(answered[count:]))
    return split, forced[:count]


def _require_room(samples: Sequence[Sample], tuning: Tuning, source: LocalModel) -> None:
    calibration.require_room(samples, tuning.prompt, context=source.context, model=source.model)


def _require_reach(lengths: Sequence[int], tuning: Tuning, base: Candidate) -> None:
    calibration.require_reach(
        lengths, window=base.window, sink_tokens=base.sink_tokens, length=tuning.length
    )
