"""`multiquery`: the hidden numbers of several names, all asked for at once."""

from __future__ import annotations

import random
from dataclasses import dataclass

from swaa.evaluation.tasks import parse_count
from swaa.evaluation.tasks.facts import listed, pick_names, pick_numbers, sentence
from swaa.evaluation.tasks.generated import HiddenTask, Question


@dataclass(frozen=True)
class MultiQuery(HiddenTask):
    """The numbers of ``queries`` names."""

    name: str = "multiquery"
    queries: int = 4
    intro = "Special magic numbers are hidden in the following text. Remember them for a question."

    def ask(self, index: int, chance: random.Random) -> Question:
        """The numbers of all names."""
        names = pick_names(chance, self.queries)
        numbers = pick_numbers(chance, self.queries)
        asked = listed(names)
        return Question(
            facts=[(chance.random(), sentence(*fact)) for fact in zip(names, numbers, strict=True)],
            text=f"What are the special magic numbers for {asked} mentioned in the text above?",
            answer_prefix=f"The special magic numbers for {asked} mentioned in the text are",
            answers=numbers,
            max_new_tokens=32 * self.queries,
        )


def make(argument: str | None) -> list[MultiQuery]:
    """The task as typed."""
    queries = parse_count("multiquery", argument, 4)
    return [MultiQuery("multiquery" if argument is None else f"multiquery:{queries}", queries)]
