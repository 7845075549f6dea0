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

from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample, Score
from swaa.evaluation.tasks.haystack import locate
from swaa.evaluation.tasks.rows import DataFile, FileTask, Row
from swaa.evaluation.words import normalise, says

MAX_NEW_TOKENS = 128
"""Longest answer where a line does not say (tokens)."""


@dataclass(frozen=True)
class OwnQuestions(FileTask):
    """Questions whose answers are found by whole words and numbers, however written."""

    kind = "jsonl"
    version = 2  # the first scorer also found answers inside words

    def samples(
        self, prompt: Prompt, *, length: int | None, count: int | None, seed: int
    ) -> list[Sample]:
        """The first ``count`` lines that are short enough, and where their needles lie."""
        rows = {f"{row.file}:{row.number}": row for row in self.file.rows()}
        samples = super().samples(prompt, length=length, count=count, seed=seed)
        return [_located(prompt, sample, rows[sample.id]) for sample in samples]

    def sample(self, row: Row, seed: int) -> Sample:
        """The question of a line."""
        answers = row.values.get("answers", row.values.get("answer"))
        answers = [answers] if isinstance(answers, str) else answers
        if not (isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers)):
            raise row.error("'answers' must be a text or a list of texts")
        if not all(map(normalise, answers)):
            raise row.error("'answers' holds an empty text, which every answer would contain")
        match = row.text("match", default="all")
        if match not in ("all", "any"):
            raise row.error(f"'match' is {match!r}; expected 'all' or 'any'")
        return Sample(
            id=f"{row.file}:{row.number}",
            task="jsonl",
            context=row.text("context"),
            question=row.text("question"),
            answer_prefix=row.text("answer_prefix", default=""),
            answers=tuple(answers),
            max_new_tokens=row.max_new_tokens(MAX_NEW_TOKENS),
            tags={"match": match},
        )

    def score(self, sample: Sample, answer: str | None) -> Score:
        """The share of the answers found, or whether any is."""
        if not answer:
            return Score(0.0, answered=False)
        found = sum(says(answer, item) for item in sample.answers)
        if sample.tags["match"] == "any":
            return Score(float(found > 0))
        return Score(found / len(sample.answers))


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
