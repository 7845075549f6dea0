"""`longmemeval`: questions about a long history of conversations, judged.

Reads the benchmark's own columns: ``question_id``, ``question_type``, ``question``,
``question_date``, ``answer``, ``haystack_dates``, ``haystack_sessions`` (lists of turns with
``role`` and ``content``) and ``answer_session_ids`` with ``haystack_session_ids``. It also reads
the columns of the paper's evaluation: ``prompt``, or ``context``, with ``question`` and
``answer``.

``longmemeval:10:FILE`` keeps ten sessions of each history, in their order: those with the answer,
and others drawn by the seed. From files with longer histories this makes prompts of the paper's
lengths (16k to 32k tokens). Which sessions the paper kept is not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swaa.evaluation.sample import Sample, Score
from swaa.evaluation.tasks.haystack import random_for
from swaa.evaluation.tasks.rows import DataFile, FileTask, Row

MAX_NEW_TOKENS = 2_000
"""Longest answer of a model that does not think first (arXiv 2512.10411, evaluation code)."""


@dataclass(frozen=True)
class LongMemEval(FileTask):
    """Free answers about past conversations."""

    sessions: int | None = None
    kind = "longmemeval"
    needs_judge = True

    @property
    def name(self) -> str:
        """The task, its sessions and its file."""
        kept = "" if self.sessions is None else f"{self.sessions}:"
        return f"longmemeval:{kept}{self.file.path.name}"

    def describe(self) -> dict[str, Any]:
        """What distinguishes runs of the task."""
        described = self.file.describe()
        return {"task": "longmemeval", "version": 1, "sessions": self.sessions, **described}

    def sample(self, row: Row, seed: int) -> Sample:
        """The question of a row."""
        question = row.text("question")
        asked = question
        if "haystack_sessions" in row.values:
            history = _history(row, self.sessions, seed)
            context = f"Below are past conversations of yours with a user.\n\n{history}"
            date = row.text("question_date", default="")
            asked = "\n".join(
                [
                    "Answer the user's question from the conversations above.",
                    *([f"Today is {date}."] if date else []),
                    f"Question: {question}",
                ]
            )
        elif "prompt" in row.values:
            context, asked = row.text("prompt"), ""
        else:
            context, asked = f"Context: {row.text('context')}", f"Question: {question}"
        kind = row.text("question_type", default="")
        return Sample(
            id=row.text("question_id", default=f"{row.file}:{row.number}"),
            task="longmemeval",
            context=context,
            question=asked,
            answers=(row.text("answer"),),
            max_new_tokens=MAX_NEW_TOKENS,
            tags={"asked": question, **({"type": kind} if kind else {})},
        )

    def score(self, sample: Sample, answer: str | None) -> Score:
        """Leave the score to a judge, unless there is no answer."""
        del sample
        return Score(None, extracted=answer) if answer else Score(0.0, answered=False)


def _history(row: Row, sessions: int | None, seed: int) -> str:
    found = row.values["haystack_sessions"]
    if not isinstance(found, list) or not all(isinstance(session, list) for session in found):
        raise row.error("'haystack_sessions' must be a list of lists of turns")
    dates = row.values.get("haystack_dates") or [""] * len(found)
    if len(dates) != len(found):
        raise row.error(f"{len(found)} sessions and {len(dates)} dates; expected as many")
    parts = []
    for place in _kept(row, len(found), sessions, seed):
        turns = "\n".join(_turn(row, turn) for turn in found[place])
        head = f"Conversation of {dates[place]}" if dates[place] else "Conversation"
        parts.append(f"{head}\n{turns}")
    return "\n\n".join(parts)


def _kept(row: Row, count: int, sessions: int | None, seed: int) -> list[int]:
    if sessions is None or count <= sessions:
        return list(range(count))
    ids = row.values.get("haystack_session_ids")
    if not isinstance(ids, list) or len(ids) != count:
        raise row.error(
            "'haystack_session_ids' must name every session, to know which hold the answer"
        )
    wanted = set(row.values.get("answer_session_ids") or ())
    needed = [place for place in range(count) if ids[place] in wanted]
    others = [place for place in range(count) if ids[place] not in wanted]
    chance = random_for(row.text("question_id", default=str(row.number)), None, seed, 0)
    return sorted(needed + chance.sample(others, max(0, sessions - len(needed))))


def _turn(row: Row, turn: Any) -> str:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
        raise row.error("each turn of a session must have a text 'content'")
    return f"{turn.get('role', 'user')}: {turn['content'].strip()}"


def make(argument: str | None) -> list[LongMemEval]:
    """The task as typed.

    Raises:
        ValueError: for less than one session.
    """
    number, colon, rest = (argument or "").partition(":")
    if not colon or not number.isdecimal():
        return [LongMemEval(DataFile.find("longmemeval", argument))]
    if int(number) < 1:
        raise ValueError(f"longmemeval:{argument}: expected at least 1 session")
    return [LongMemEval(DataFile.find("longmemeval", rest), int(number))]
