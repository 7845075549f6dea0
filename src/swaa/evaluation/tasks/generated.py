"""Code shared by the tasks that need no data: a loop over seeds, hiding, and a scorer."""

from __future__ import annotations

import dataclasses
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample, Score
from swaa.evaluation.tasks.facts import share_found
from swaa.evaluation.tasks.haystack import hide, random_for

VERSION = 1
"""Version of all generators; raised when any prompt changes, to keep old results apart."""
MOST_THREADS = 8
"""Threads that make prompts."""


@dataclass(frozen=True)
class Question:
    """What one sample asks for, before it is hidden in text.

    Attributes:
        facts: depth and sentence of everything hidden.
        text: the question.
        answer_prefix: words that begin the answer.
        answers: what the answer must hold.
        max_new_tokens: longest answer (tokens).
        needed: how many of the first facts the answer needs; ``None``: all.
        tags: for the scorer.
    """

    facts: Sequence[tuple[float, str]]
    text: str
    answer_prefix: str
    answers: Sequence[str]
    max_new_tokens: int
    needed: int | None = None
    tags: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class GeneratedTask(ABC):
    """A task made from a seed, at any length.

    Attributes:
        name: as typed.
    """

    name: str
    needs_length = True
    needs_judge = False

    def describe(self) -> dict[str, Any]:
        """What distinguishes runs of the task."""
        values = dataclasses.asdict(self)
        return {"task": values.pop("name"), "version": VERSION, **values}

    def samples(
        self, prompt: Prompt, *, length: int | None, count: int | None, seed: int
    ) -> list[Sample]:
        """The questions; see :class:`swaa.evaluation.tasks.Task`.

        Raises:
            ValueError: without a length, or for one without room for the question.
        """
        if length is None:
            raise ValueError(f"{self.name} makes prompts of any length; say of how many tokens")

        def make(index: int) -> Sample:
            chance = random_for(self.name, length, seed, index)
            name = f"{self.name}-{length}-{seed}-{index}"
            return self.sample(prompt, name, length, index, chance)

        # Nearly all time goes to counting tokens, in which fast tokenizers let other threads run.
        threads = min(MOST_THREADS, os.cpu_count() or 1) if prompt.tokenizer.is_fast else 1
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(make, range(50 if count is None else count)))

    def score(self, sample: Sample, answer: str | None) -> Score:
        """The share of the expected answers that the answer contains; right means all of them."""
        return share_found(sample.answers, answer)

    @abstractmethod
    def sample(
        self, prompt: Prompt, name: str, length: int, index: int, chance: random.Random
    ) -> Sample:
        """One question."""


class HiddenTask(GeneratedTask):
    """A task whose facts are hidden in running text.

    Attributes:
        intro: words before the text.
    """

    intro: str

    def sample(
        self, prompt: Prompt, name: str, length: int, index: int, chance: random.Random
    ) -> Sample:
        """One question."""
        asked = self.ask(index, chance)
        text = hide(
            prompt,
            asked.facts,
            intro=self.intro,
            question=asked.text,
            answer_prefix=asked.answer_prefix,
            length=length,
            chance=chance,
        )
        return Sample(
            id=name,
            task=self.name,
            length=length,
            context=text.context,
            question=asked.text,
            answer_prefix=asked.answer_prefix,
            answers=tuple(asked.answers),
            max_new_tokens=asked.max_new_tokens,
            needles=text.needles[: asked.needed],
            tags=asked.tags,
        )

    @abstractmethod
    def ask(self, index: int, chance: random.Random) -> Question:
        """What sample ``index`` asks for."""


def no_argument(task: str, argument: str | None) -> None:
    """Refuse an argument after the colon.

    Raises:
        ValueError: when there is one.
    """
    if argument is not None:
        raise ValueError(f"{task}:{argument}: the task takes no argument")
