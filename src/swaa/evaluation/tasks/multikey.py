"""`multikey`: one hidden number is asked for, next to hidden numbers of other names."""

from __future__ import annotations

import random
from dataclasses import dataclass

from swaa.evaluation.sample import Sample, Score
from swaa.evaluation.tasks import parse_count
from swaa.evaluation.tasks.facts import pick_names, pick_numbers, sentence, share_found
from swaa.evaluation.tasks.generated import HiddenTask, Question
from swaa.evaluation.tasks.haystack import spread


@dataclass(frozen=True)
class MultiKey(HiddenTask):
    """One number asked for among the numbers of ``others``."""

    name: str = "multikey"
    others: int = 3
    intro = "Special magic numbers are hidden in the following text. Remember them for a question."

    def ask(self, index: int, chance: random.Random) -> Question:
        """The number of the first name."""
        names = pick_names(chance, self.others + 1)
        numbers = pick_numbers(chance, self.others + 1)
        # The depths asked for are spread evenly, those of the others are random.
        depths = [spread(index), *(chance.random() for _ in range(self.others))]
        sentences = map(sentence, names, numbers)
        return Question(
            facts=list(zip(depths, sentences, strict=True)),
            text=f"What is the special magic number for {names[0]} mentioned in the text above?",
            answer_prefix=f"The special magic number for {names[0]} mentioned in the text is",
            answers=numbers[:1],
            max_new_tokens=24,
            needed=1,
            tags={"others": " ".join(numbers[1:])},
        )

    def score(self, sample: Sample, answer: str | None) -> Score:
        """Whether the answer contains the number asked for, and none of the others."""
        found = super().score(sample, answer)
        # A list of every number in the text would contain each of them.
        others = sample.tags["others"].split()
        if any(share_found([other], answer).value for other in others):
            return Score(0.0, found.answered)
        return found


def make(argument: str | None) -> list[MultiKey]:
    """The task as typed."""
    others = parse_count("multikey", argument, 3)
    return [MultiKey("multikey" if argument is None else f"multikey:{others}", others)]
