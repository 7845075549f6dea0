"""`jsonl`: the user's own questions.

Each line is an object with ``context``, ``question`` and ``answers`` (a list of texts, or one
text). Optional: ``answer_prefix``, ``max_new_tokens`` (128), ``match`` (``all`` answers must be
in the model's, the default, or ``any`` of them; as whole words and numbers, see
:mod:`swaa.evaluation.words`) and ``needle``, words of the context that the answer needs, for
accuracy by place.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample, Score
from swaa.evaluation.tasks.haystack import locate
from swaa.evaluation.tasks.rows import DataFile, Row, take
from swaa.evaluation.words import normalise, says

VERSION = 2
"""Version of the scorer. Version 1 also found answers inside words; its results are kept apart."""

MAX_NEW_TOKENS = 128
"""Longest answer where a line does not say (tokens)."""


@dataclass(frozen=True)
class OwnQuestions:
    """Questions whose answers are found by whole words and numbers, however written."""

    file: DataFile
    needs_length = False
    needs_judge = False

    @property
    def name(self) -> str:
        """The file's name."""
        return f"jsonl:{self.file.path.name}"

    def describe(self) -> dict[str, Any]:
        """What distinguishes runs of the task."""
        return {"task": "jsonl", "version": VERSION, **self.file.describe()}

    def samples(
        self, prompt: Prompt, *, length: int | None, count: int | None, seed: int
    ) -> list[Sample]:
        """The first ``count`` lines whose prompts have at most ``length`` tokens."""
        del seed
        rows = {f"{row.file}:{row.number}": row for row in self.file.rows()}
        samples = take(iter(rows.values()), _sample, prompt, length=length, count=count)
        return [_located(prompt, sample, rows[sample.id]) for sample in samples]

    def score(self, sample: Sample, answer: str | None) -> Score:
        """The share of the answers found, or whether any is."""
        if not answer:
            return Score(0.0, answered=False)
        found = sum(says(answer, item) for item in sample.answers)
        if sample.tags["match"] == "any":
            return Score(float(found > 0))
        return Score(found / len(sample.answers))


def _sample(row: Row) -> Sample:
    answers = row.values.get("answers", row.values.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not (isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers)):
        raise row.error("'answers' must be a text or a list of texts")
    if not all(map(normalise, answers)):
        raise row.error("'answers' holds an empty text, which every answer would contain")
    match = row.text("match", default="all")
    if match not in ("all", "any"):
        raise row.error(f"'match' is {match!r}; expected 'all' or 'any'")
    most = row.values.get("max_new_tokens", MAX_NEW_TOKENS)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise row.error(f"'max_new_tokens' is {most!r}; expected a whole number of at least 1")
    return Sample(
        id=f"{row.file}:{row.number}",
        task="jsonl",
        length=0,
        context=row.text("context"),
        question=row.text("question"),
        answer_prefix=row.text("answer_prefix", default=""),
        answers=tuple(answers),
        max_new_tokens=most,
        tags={"match": match},
    )


def _located(prompt: Prompt, sample: Sample, row: Row) -> Sample:
    words = row.values.get("needle")
    if words is None:
        return sample
    if not isinstance(words, str) or words not in sample.context:
        raise row.error("'needle' must be words that 'context' holds")
    needle = locate(prompt, sample.context, sample.question, words, sample.length)
    return dataclasses.replace(sample, needles=(needle,))


def make(argument: str | None) -> list[OwnQuestions]:
    """The task as typed."""
    return [OwnQuestions(DataFile.find("jsonl", argument))]
