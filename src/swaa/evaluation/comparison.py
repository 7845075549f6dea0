"""Settings on tasks at lengths, all on the same samples, and what each keeps of full attention."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from swaa import results
from swaa.config import SWAAConfig
from swaa.evaluation.engines import Engine, Request
from swaa.evaluation.judge import Judge
from swaa.evaluation.prompt import Prompt
from swaa.evaluation.run import Outcome, Run, execute, find, is_likelihood, make_requests
from swaa.evaluation.sample import Sample
from swaa.evaluation.summary import by_place, is_right
from swaa.evaluation.tasks import Task
from swaa.statistics import mcnemar, retention


class Source(Protocol):
    """Where engines come from.

    Attributes:
        model: name of the model.
        revision: commit or checksum of its weights.
        context: tokens that it can see at once; ``None``: unknown.
        device: in torch's notation, for the record; several are separated by commas.
    """

    model: str
    revision: str | None
    context: int | None
    device: str

    def engine(self, config: SWAAConfig) -> Engine:
        """An engine that runs a configuration; it does nothing before it is entered."""
        ...

    def running(self, engine: Engine) -> AbstractContextManager[Engine]:
        """Make an engine ready for prompts, and undo that afterwards."""
        ...

    def costs(self, config: SWAAConfig, length: int) -> Mapping[str, float] | None:
        """Computed costs of a prompt, divided by full attention's; ``None``: unknown."""
        ...


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What to measure.

    Attributes:
        settings: name and configuration of each.
        tasks: what is asked.
        lengths: tokens of each prompt; for tasks that read a file, the most.
        count: samples of each task and length; ``None``: 50, or all in a file.
        seed: of the samples.
        prompt: how samples become a model's input.
        folder: of all results.
        batch_size: prompts answered at once.
        judge: scores free answers.
    """

    settings: Sequence[tuple[str, SWAAConfig]]
    tasks: Sequence[Task]
    lengths: Sequence[int | None]
    prompt: Prompt
    count: int | None = None
    seed: int = 0
    folder: str | Path = results.FOLDER
    batch_size: int = 1
    judge: Judge | None = None

    def execute(
        self, source: Source, *, progress: Callable[[float, str], None] | None = None
    ) -> list[Outcome]:
        """Do every run that is not done yet.

        Args:
            source: of engines.
            progress: called with the share of the work that is done, 0 to 1, and what is going on.

        Returns:
            All outcomes, by task, length and setting, in the order given.

        Raises:
            ValueError: before any prompt is answered, when one is too long for the model.
        """
        groups = [
            (task, length, [self._run(source, task, length, *item) for item in self.settings])
            for task, length in itertools.product(self.tasks, self.lengths)
        ]
        found = [[find(run, folder=self.folder) for run in runs] for _, _, runs in groups]
        # Every prompt is made before the first is answered, so that mistakes in them show at once.
        samples = [
            [] if all(done) else self._samples(source, task, length)
            for (task, length, _), done in zip(groups, found, strict=True)
        ]
        weights = [
            sum(sample.length for sample in group)
            for group, done in zip(samples, found, strict=True)
            for outcome in done
            if outcome is None
        ]
        meter = _Meter(weights, progress)
        outcomes: list[Outcome] = []
        for (_, _, runs), done, group in zip(groups, found, samples, strict=True):
            # Once for all settings: encoding long prompts can take as long as answering them.
            requests = make_requests(self.prompt, group)
            outcomes += [
                outcome or self._execute(source, run, group, requests, meter)
                for run, outcome in zip(runs, done, strict=True)
            ]
        return outcomes

    def _execute(
        self,
        source: Source,
        run: Run,
        samples: Sequence[Sample],
        requests: Sequence[Request],
        meter: _Meter,
    ) -> Outcome:
        engine = source.engine(run.config)
        with source.running(engine):
            outcome = execute(
                run,
                samples,
                engine,
                folder=self.folder,
                batch_size=self.batch_size,
                judge=self.judge,
                device=source.device,
                progress=meter.of(len(samples), f"{run.setting}: {run.task.name}"),
                requests=requests,
                costs=None if run.length is None else source.costs(run.config, run.length),
            )
        meter.finish()
        return outcome

    def _run(
        self, source: Source, task: Task, length: int | None, name: str, config: SWAAConfig
    ) -> Run:
        return Run(
            model=source.model,
            model_revision=source.revision,
            setting=name,
            config=config,
            task=task,
            length=length,
            count=self.count,
            seed=self.seed,
            prompt=self.prompt,
            engine=source.engine(config).describe(),
            judge=self.judge.endpoint.model if self.judge else None,
        )

    def _samples(self, source: Source, task: Task, length: int | None) -> list[Sample]:
        samples = task.samples(self.prompt, length=length, count=self.count, seed=self.seed)
        if not samples:
            limit = "" if length is None else f" of at most {length:,} tokens"
            raise ValueError(f"{task.name} has no sample{limit}")
        for sample in samples:
            answer = self.prompt.max_new_tokens(sample)
            if source.context is not None and sample.length + answer > source.context:
                raise ValueError(
                    f"sample {sample.id} has {sample.length} tokens and an answer of up to"
                    f" {answer}; {source.model} sees {source.context} at once: ask for --lengths of"
                    f" at most {source.context - answer}"
                )
        return samples


class _Meter:
    """Turns finished samples into a share of all work, with prompts weighted by their tokens."""

    def __init__(
        self, weights: Sequence[int], progress: Callable[[float, str], None] | None
    ) -> None:
        self._weights = weights
        self._progress = progress
        self._at = 0

    def of(self, samples: int, label: str) -> Callable[[int], None]:
        before, own = sum(self._weights[: self._at]), self._weights[self._at]
        total = max(1, sum(self._weights))

        def report(done: int) -> None:
            if self._progress is not None:
                self._progress((before + own * done / samples) / total, label)

        return report

    def finish(self) -> None:
        self._at += 1


def against_full(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What each outcome keeps of full attention's on the same samples.

    Returns:
        For each outcome ``retention`` in per cent and McNemar's ``p``; ``None`` for full attention
        itself, where its outcome is missing, and where :func:`nothing_slides`.
    """
    rows = []
    for outcome in outcomes:
        full = next((o for o in outcomes if _is_pair(outcome, o)), None)
        if full is None or is_likelihood(outcome.run) or nothing_slides(outcome):
            rows.append({"retention": None, "p": None})
            continue
        ours, theirs = _right(outcome.samples), _right(full.samples)
        ids = sorted(ours.keys() & theirs.keys())
        a, b = [ours[name] for name in ids], [theirs[name] for name in ids]
        rows.append({"retention": retention(sum(a) / len(a), sum(b) / len(b)), "p": mcnemar(a, b)})
    return rows


def nothing_slides(outcome: Outcome) -> bool:
    """Whether window and sinks cover every prompt and answer: full attention was measured then.

    Any difference from full attention's answers comes from rounding.
    """
    return all(
        outcome.run.config.covers(sample["length"], sample.get("new_tokens") or 0)
        for sample in outcome.samples
    )


def places(outcomes: Sequence[Outcome]) -> tuple[int, int] | None:
    """The window and the sinks by which needles of all outcomes are sorted the same way.

    The narrowest window and the most sinks among the settings; ``None``: none of them slides.
    """
    sliding = [o.run.config for o in outcomes if o.run.config.window is not None]
    if not sliding:
        return None
    window = min(config.window for config in sliding if config.window is not None)
    return window, max(config.sink_tokens for config in sliding)


def right_by_place(
    outcome: Outcome, window: int, sink_tokens: int
) -> Mapping[str, tuple[int, int]]:
    """Right answers and samples for each place of the needle."""
    parts = by_place(outcome.samples, window=window, sink_tokens=sink_tokens)
    return {name: (sum(map(is_right, part)), len(part)) for name, part in parts.items()}


def _is_pair(ours: Outcome, theirs: Outcome) -> bool:
    a, b = ours.run, theirs.run
    same = (a.task.name, a.length) == (b.task.name, b.length)
    return same and b.config.window is None and a.config.window is not None


def _right(samples: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    return {sample["id"]: is_right(sample) for sample in samples}
