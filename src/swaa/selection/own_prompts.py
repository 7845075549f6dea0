"""The user's own prompts as a task: a JSONL file of ``prompt`` and, if known, ``answer``.

Each line is an object with ``prompt``, the whole text (the chat template frames it). Optional:
``answer``, one text or a list of texts that a right answer contains, and ``max_new_tokens``.
Without answers, full attention's own greedy answers take their place.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample, Score
from swaa.evaluation.tasks.rows import FileTask, Row
from swaa.evaluation.words import normalise, says

MAX_NEW_TOKENS = 64
"""Longest answer where a line does not say (tokens)."""

SAME = 0.9
"""From this overlap on, an answer counts as the same as full attention's own."""


@dataclass(frozen=True)
class OwnPrompts(FileTask):
    """Prompts whose answers are found by their words, or compared with full attention's."""

    kind = "prompts"
    version = 2  # the first scorer also found answers inside words

    def samples(
        self, prompt: Prompt, *, length: int | None, count: int | None, seed: int
    ) -> list[Sample]:
        """The first ``count`` lines whose prompts have at most ``length`` tokens.

        Raises:
            ValueError: for a line that is not a prompt, and where only some lines have answers.
        """
        made = super().samples(prompt, length=length, count=count, seed=seed)
        if any(sample.answers for sample in made):
            for row in self.file.rows():
                if _answers(row) == ():
                    raise row.error(
                        "there is no 'answer', and other lines have one; give every line its"
                        " answer, or none (then full attention's own answers are used)"
                    )
        return made

    def sample(self, row: Row, seed: int) -> Sample:
        """The prompt of a line."""
        if "prompt" not in row.values and "context" in row.values:
            raise row.error(
                "there is no column 'prompt' but a 'context', as 'swaa eval' reads it; give"
                f" --data jsonl:{row.file}, or one 'prompt' a line"
            )
        if row.values.get("prompt") is None:
            there = ", ".join(map(str, row.values)) or "none"
            raise row.error(
                "there is no column 'prompt'; expected 'prompt' and, if known, 'answer'; the"
                f" columns are {there}"
            )
        answers = _answers(row)
        text = row.text("prompt")
        if not text.strip():
            raise row.error("'prompt' is empty")
        return Sample(
            id=f"{row.file}:{row.number}",
            task="prompts",
            context=text,
            answers=answers,
            max_new_tokens=row.max_new_tokens(MAX_NEW_TOKENS),
            tags={"gold": "yes" if answers else "no"},
        )

    def score(self, sample: Sample, answer: str | None) -> Score:
        """The share of the answers that are found, or 1 where it matches full attention's own."""
        if not answer:
            return Score(0.0, answered=False)
        if sample.tags["gold"] == "no":
            overlap = word_overlap(answer, sample.answers[0])
            return Score(1.0 if overlap >= SAME else overlap)
        found = sum(says(answer, item) for item in sample.answers)
        return Score(found / len(sample.answers))


def word_overlap(ours: str, theirs: str) -> float:
    """The F1 score of two texts' words, 0 to 1: 1 for the same words, whatever their order.

    >>> word_overlap("the red fox", "the fox")
    0.8
    """
    a, b = Counter(ours.lower().split()), Counter(theirs.lower().split())
    shared = sum((a & b).values())
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def _answers(row: Row) -> tuple[str, ...]:
    answers = row.values.get("answer", row.values.get("answers"))
    if answers is None:
        return ()
    answers = [answers] if isinstance(answers, str) else answers
    right = isinstance(answers, list) and answers
    if not (right and all(isinstance(a, str) and normalise(a) for a in answers)):
        raise row.error("'answer' must be a text or a list of texts, none of them empty")
    return tuple(answers)
