"""`needle`: one number hidden in a long text."""

from __future__ import annotations

import random
from dataclasses import dataclass

from swaa.evaluation.tasks.facts import pick_names, pick_numbers, sentence
from swaa.evaluation.tasks.generated import HiddenTask, Question, no_argument
from swaa.evaluation.tasks.haystack import spread


@dataclass(frozen=True)
class Needle(HiddenTask):
    """One hidden number, at depths from the text's beginning to its end."""

    name: str = "needle"
    intro = "A special magic number is hidden in the following text. Remember it for a question."

    def ask(self, index: int, chance: random.Random) -> Question:
        """The number of one name."""
        (name,), (number,) = pick_names(chance, 1), pick_numbers(chance, 1)
        return Question(
            facts=[(spread(index), sentence(name, number))],
            text=f"What is the special magic number for {name} mentioned in the text above?",
            answer_prefix=f"The special magic number for {name} mentioned in the text is",
            answers=[number],
            max_new_tokens=24,
        )


def make(argument: str | None) -> list[Needle]:
    """The task as typed."""
    no_argument("needle", argument)
    return [Needle()]
