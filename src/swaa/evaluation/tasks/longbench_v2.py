"""`longbench_v2`: long documents with questions of four choices.

Reads the benchmark's own columns: ``context``, ``question``, ``choice_A`` to ``choice_D``,
``answer`` (a letter), and ``_id``, ``domain``, ``difficulty`` and ``length`` where they exist. It
also reads the columns of the paper's evaluation: ``prompt`` (document, question and choices in
one) and ``answer``. The model's answer is the letter in its last "The correct answer is (X)"; a
reply without one counts as wrong and is also counted separately, since with four choices even
guessing gives 25 %.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from swaa.evaluation.sample import Sample, Score
from swaa.evaluation.tasks.rows import DataFile, FileTask, Row

LETTERS = "ABCD"

MAX_NEW_TOKENS = 2_000
"""Longest answer of a model that does not think first (arXiv 2512.10411, evaluation code)."""

_FORM = 'End your reply with the sentence "The correct answer is (X)", X being the letter.'


@dataclass(frozen=True)
class LongBenchV2(FileTask):
    """Multiple choice over long documents."""

    kind = "longbench_v2"

    def sample(self, row: Row, seed: int) -> Sample:
        """The question of a row."""
        answer = row.text("answer").strip()
        if len(answer) != 1 or answer not in LETTERS:
            raise row.error(f"'answer' is {answer!r}; expected one of {', '.join(LETTERS)}")
        if "prompt" in row.values:
            context, question = row.text("prompt"), ""
            if "The correct answer is" not in context:
                question = _FORM
        else:
            text = row.text("context")
            context = f"Read the following text and answer the question below.\n\n{text}"
            choices = [f"({letter}) {row.text(f'choice_{letter}').strip()}" for letter in LETTERS]
            question = "\n".join([f"Question: {row.text('question').strip()}", *choices, "", _FORM])
        names = ("domain", "difficulty", "length")
        return Sample(
            id=row.text("_id", default=f"{row.file}:{row.number}"),
            task="longbench_v2",
            context=context,
            question=question,
            answers=(answer,),
            max_new_tokens=MAX_NEW_TOKENS,
            tags={name: row.text(name) for name in names if isinstance(row.values.get(name), str)},
        )

    def score(self, sample: Sample, answer: str | None) -> Score:
        """Whether the letter is right."""
        letter = find_letter(answer or "")
        if letter is None:
            return Score(0.0, answered=False)
        return Score(float(letter == sample.answers[0]), extracted=letter)


def find_letter(answer: str) -> str | None:
    """The letter of an answer's final choice; ``None``: it names none in the form asked for.

    >>> find_letter("(A)? No. **The correct answer is (C)**."), find_letter("It is C.")
    ('C', None)
    """
    plain = answer.replace("*", "")
    for form in (r"[Tt]he correct answer is \(([A-D])\)", r"[Tt]he correct answer is:? ([A-D])\b"):
        found = re.findall(form, plain)
        if found:
            return found[-1]
    return None


def make(argument: str | None) -> list[LongBenchV2]:
    """The task as typed."""
    return [LongBenchV2(DataFile.find("longbench_v2", argument))]
