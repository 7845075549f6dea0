"""`multivalue`: several hidden numbers of one name, all asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass

from swaa.evaluation.tasks import parse_count
from swaa.evaluation.tasks.facts import pick_names, pick_numbers, sentence
from swaa.evaluation.tasks.generated import HiddenTask, Question


@dataclass(frozen=True)
class MultiValue(HiddenTask):
    """All ``values`` of one name."""

    name: str = "multivalue"
    values: int = 4
    intro = "Special magic numbers are hidden in the following text. Remember them for a question."

    def ask(self, index: int, chance: random.Random) -> Question:
        """All numbers of one name."""
        (name,) = pick_names(chance, 1)
        numbers = pick_numbers(chance, self.values)
        return Question(
            facts=[(chance.random(), sentence(name, number)) for number in numbers],
            text=f"What are all the special magic numbers for {name} mentioned in the text above?",
            answer_prefix=f"The special magic numbers for {name} mentioned in the text are",
            answers=numbers,
            max_new_tokens=24 * self.values,
        )


def make(argument: str | None) -> list[MultiValue]:
    """The task as typed."""
    values = parse_count("multivalue", argument, 4)
    return [MultiValue("multivalue" if argument is None else f"multivalue:{values}", values)]
