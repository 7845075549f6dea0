"""`variable_tracking`: a chain of assignments hidden in a long text; which variables are equal?"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from swaa.evaluation.tasks import parse_count
from swaa.evaluation.tasks.generated import HiddenTask, Question


@dataclass(frozen=True)
class VariableTracking(HiddenTask):
    """A number handed on ``hops`` times."""

    name: str = "variable_tracking"
    hops: int = 4
    intro = "Assignments to variables are hidden in the following text. Follow them for a question."

    def ask(self, index: int, chance: random.Random) -> Question:
        """All variables of the chain."""
        variables: list[str] = []
        while len(variables) <= self.hops:
            variable = "".join(chance.choices(string.ascii_uppercase, k=5))
            if variable not in variables:
                variables.append(variable)
        number = str(chance.randint(10_000, 99_999))
        values = [number, *(f"VAR {variable}" for variable in variables[:-1])]
        depths = sorted(chance.random() for _ in variables)
        return Question(
            facts=[
                (depth, f"VAR {variable} = {value}.")
                for depth, variable, value in zip(depths, variables, values, strict=True)
            ],
            text=f"Which variables have the value {number} in the text above? Name all of them.",
            answer_prefix=f"{len(variables)} variables have the value {number}, they are:",
            answers=variables,
            max_new_tokens=12 * len(variables),
        )


def make(argument: str | None) -> list[VariableTracking]:
    """The task as typed."""
    hops = parse_count("variable_tracking", argument, 4)
    name = "variable_tracking" if argument is None else f"variable_tracking:{hops}"
    return [VariableTracking(name, hops)]
