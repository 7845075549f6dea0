"""`recall`: look up one key in a prompt full of key-value pairs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample
from swaa.evaluation.tasks.generated import GeneratedTask, no_argument
from swaa.evaluation.tasks.haystack import (
    grow,
    locate,
    most_that_fit,
    read_filler,
    spread,
)

INTRO = "The following list gives a number for each key. Remember them for a question."


@dataclass(frozen=True)
class Recall(GeneratedTask):
    """Nothing but pairs, so that everything in the prompt looks like what is asked for."""

    name: str = "recall"

    def sample(
        self, prompt: Prompt, name: str, length: int, index: int, chance: random.Random
    ) -> Sample:
        """One question."""
        # Keys have five digits and values six, so that they cannot be confused.
        keys = chance.sample(range(10_000, 100_000), min(90_000, length))
        lines = [f"key {key}: {chance.randint(100_000, 999_999)}" for key in keys]
        # The question has the same length for every key, up to a token or two.
        missing = _missing(prompt, length, *_asked(lines[0]))
        count = most_that_fit(len(lines), lambda fit: missing(_list(lines[:fit])))
        if count < 1:
            raise ValueError(f"a prompt of {length} tokens has no room for a list of pairs")
        # The last two lines may have to be removed again.
        wanted = lines[int(spread(index) * max(1, count - 2))]
        question, prefix = _asked(wanted)
        missing = _missing(prompt, length, question, prefix)
        while missing(_list(lines[:count])) < 0:
            count -= 1
        # Words after the list bring the prompt to its length.
        context = grow(f"{_list(lines[:count])}\n", read_filler()[:2000], missing)
        return Sample(
            id=name,
            task=self.name,
            length=length,
            context=context,
            question=question,
            answer_prefix=prefix,
            answers=(wanted.rpartition(" ")[2],),
            max_new_tokens=16,
            needles=(locate(prompt, context, question, wanted, length),),
        )


def _asked(line: str) -> tuple[str, str]:
    key = line.partition(":")[0]
    return f"Which number does the list above give for {key}?", f"The number for {key} is"


def _missing(prompt: Prompt, length: int, question: str, prefix: str) -> Callable[[str], int]:
    return lambda context: length - prompt.count(context, question, prefix)


def _list(lines: list[str]) -> str:
    return "\n".join([INTRO, "", *lines])


def make(argument: str | None) -> list[Recall]:
    """The task as typed."""
    no_argument("recall", argument)
    return [Recall()]
