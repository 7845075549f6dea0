"""What a recipe is tuned on: questions with their answers' tokens, and others held out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swaa.config import SWAAConfig
from swaa.evaluation.engines import Engine, Reply, make_batches
from swaa.evaluation.prompt import Prompt, plain_ids
from swaa.evaluation.run import make_requests
from swaa.evaluation.sample import Sample, Score
from swaa.evaluation.tasks import Task
from swaa.selection.batches import TeacherForced

FEWEST = 4
"""The fewest samples of a calibration or held-out split."""

ANSWER_TOKENS = 64
"""Tokens of an answer that are predicted; the rest of a longer answer is left out."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Two disjoint parts of one task's samples.

    Attributes:
        calibration: what signals and search see.
        held_out: what the reported score is measured on.
    """

    calibration: tuple[Sample, ...]
    held_out: tuple[Sample, ...]


@dataclass(frozen=True)
class GivenSamples:
    """A task limited to given samples, so that a comparison runs on these and no others."""

    task: Task
    given: tuple[Sample, ...]
    needs_judge = False

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def needs_length(self) -> bool:
        """As for the task."""
        return self.task.needs_length

    def describe(self) -> dict[str, Any]:
        """The task, and which of its samples."""
        names = " ".join(f"{sample.id}={'|'.join(sample.answers)}" for sample in self.given)
        return {**self.task.describe(), "given": hashlib.sha256(names.encode()).hexdigest()[:12]}

    def samples(
        self, prompt: Prompt, *, length: int | None, count: int | None, seed: int
    ) -> list[Sample]:
        """The given samples."""
        del prompt, length, count, seed
        return list(self.given)

    def score(self, sample: Sample, answer: str | None) -> Score:
        """The task's score."""
        return self.task.score(sample, answer)


def require_counts(samples: int | None, held_out: int | None) -> None:
    """Refuse splits that are too small to tell anything.

    Args:
        samples: to tune on; ``None``: the default number.
        held_out: to report on; ``None``: as many as there are; 0: nothing is reported.

    Raises:
        ValueError: naming the flag, for a number below :data:`FEWEST`.
    """
    for flag, count in (("--samples", samples), ("--held-out", held_out or None)):
        if count is not None and count < FEWEST:
            raise ValueError(f"{flag} {count}: expected at least {FEWEST} samples")


def split(
    task: Task,
    samples: Sequence[Sample],
    *,
    calibration: int,
    held_out: int | None,
    seed: int,
    too_long: Callable[[], int] = int,
) -> Split:
    """Split samples by a seeded shuffle.

    Args:
        task: the samples' task, for messages.
        samples: of one task.
        calibration: samples to tune on.
        held_out: samples to report on; ``None``: all others; 0: none, because other samples are
            reported on.
        seed: of the shuffle.
        too_long: counts the samples left out for their length; called when there are too few.

    Raises:
        ValueError: when there are too few.
    """
    require_counts(calibration, held_out or None)
    wanted = calibration + (FEWEST if held_out is None else held_out)
    if len(samples) < wanted:
        longer = too_long()
        more = "give more lines"
        if longer:
            more = f"{longer} more are longer than --length: raise it, give more lines"
        raise ValueError(
            f"{task.name} has {len(samples)} usable samples, too few to tune on {calibration} and"
            f" report on {wanted - calibration} others: {more}, or lower --samples and --held-out"
        )
    shuffled = list(samples)
    random.Random(f"swaa tune {seed}").shuffle(shuffled)
    rest = shuffled[calibration:]
    return Split(
        calibration=tuple(shuffled[:calibration]),
        held_out=tuple(rest if held_out is None else rest[:held_out]),
    )


def count_longer(task: Task, prompt: Prompt, length: int | None) -> int:
    """The number of samples in a file that are left out for their length.

    Args:
        task: the samples' task.
        prompt: counts tokens.
        length: the most tokens of a prompt; ``None``: no limit.
    """
    if length is None or task.needs_length:
        return 0
    every = task.samples(prompt, length=None, count=None, seed=0)
    return sum(sample.length > length for sample in every)


def require_room(
    samples: Sequence[Sample], prompt: Prompt, *, context: int | None, model: str
) -> None:
    """Refuse prompts that the model cannot see whole, together with the longest answer.

    Args:
        samples: of both parts.
        prompt: says how long answers may be.
        context: tokens that the model sees at once; ``None``: not known.
        model: its name.

    Raises:
        ValueError: naming the first that is too long.
    """
    for sample in samples:
        most = sample.length + prompt.max_new_tokens(sample)
        if context is not None and most > context:
            raise ValueError(
                f"sample {sample.id} takes up to {most} tokens with its answer; {model} sees"
                f" {context} at once: lower --length"
            )


def require_reach(
    lengths: Sequence[int], *, window: int, sink_tokens: int, length: int | None
) -> None:
    """Refuse prompts that window and sinks cover completely: all recipes answer them the same.

    Args:
        lengths: of the prompts to tune on (tokens).
        window: keys a sliding row sees.
        sink_tokens: first tokens that every row sees.
        length: the length asked for, or the most for a file; ``None``: no limit.

    Raises:
        ValueError: when fewer than half of the prompts are longer than window and sinks.
    """
    longer = sum(tokens > window + sink_tokens for tokens in lengths)
    if 2 * longer < len(lengths):
        more = "give longer prompts" if length is None else f"raise --length (now {length})"
        raise ValueError(
            f"{len(lengths) - longer} of {len(lengths)} calibration prompts fit into {window} keys"
            f" and {sink_tokens} sinks, where every layer sees everything: {more}, or lower"
            " --window or --sink-tokens"
        )


def gold(prompt: Prompt, samples: Sequence[Sample]) -> list[TeacherForced]:
    """Samples with the tokens of their given answers."""
    made = []
    for sample in samples:
        # After its given first words, an answer needs a space; after a chat template it needs none.
        space = " " if prompt.begun(sample.answer_prefix) else ""
        tokens = plain_ids(prompt.tokenizer, f"{space}{', '.join(sample.answers)}")
        answer = tuple(tokens[:ANSWER_TOKENS])
        made.append(TeacherForced(sample.id, tuple(prompt.ids(sample)), answer))
    return made


def own_answers(
    prompt: Prompt, samples: Sequence[Sample], engine: Engine, *, batch_size: int
) -> tuple[list[Sample], list[TeacherForced]]:
    """Full attention's greedy answers, used instead of gold answers.

    Args:
        prompt: frames and encodes.
        samples: with or without answers of their own.
        engine: already entered; full attention.
        batch_size: prompts answered at once.

    Returns:
        The samples with the model's answer as the only one, and the answers' tokens.

    Raises:
        ValueError: when the model's answer to a prompt is empty.
    """
    requests = make_requests(prompt, samples)
    replies = {r.id: r for r in engine.answer(make_batches(requests, batch_size))}
    answered, forced = [], []
    for sample, request in zip(samples, requests, strict=True):
        reply = replies[sample.id]
        answered.append(replace(sample, answers=(_said(sample, reply),)))
        # The generated tokens themselves: encoding their text may give other tokens.
        forced.append(TeacherForced(sample.id, request.ids, reply.ids[:ANSWER_TOKENS]))
    return answered, forced


def _said(sample: Sample, reply: Reply) -> str:
    if not reply.output.strip():
        raise ValueError(
            f"sample {sample.id} has no answer, and the model itself answers nothing to its prompt:"
            " give it an 'answer', or take it out"
        )
    return reply.output


FULL_ATTENTION = SWAAConfig(window=None)
"""The model as it is."""
