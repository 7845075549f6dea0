"""The interface of a task, and the table of all tasks."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample, Score

TASKS = {
    "needle": "find the one number hidden in the text",
    "multikey": "find it among numbers of others (multikey:N others, default 3)",
    "multiquery": "find the numbers of several (multiquery:N, default 4)",
    "multivalue": "find all numbers of one (multivalue:N, default 4)",
    "variable_tracking": "follow assignments through the text (variable_tracking:N, default 4)",
    "recall": "look a key up in a long list of pairs",
    "jsonl": "your own questions: jsonl:FILE",
    "longmemeval": "LongMemEval, judged: longmemeval:FILE, longmemeval:SESSIONS:FILE",
    "longbench_v2": "LongBench v2, multiple choice: longbench_v2:FILE",
    "ruler": "a task of RULER, or all 13: ruler:vt, ruler (needs the extra 'ruler')",
    "perplexity": "how well text is predicted inside the window and beyond it",
}
"""Each task is the module ``swaa.evaluation.tasks.<name>`` with ``make(argument)``."""


class Task(Protocol):
    """The interface of a task; see the modules in this package for examples.

    Attributes:
        name: as typed, argument included; a file's name without its folders.
        needs_length: whether prompts are made to a length; otherwise they come with one.
        needs_judge: whether answers are free text that only a judge can score.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 # above
    @property
    def needs_length(self) -> bool: ...  # noqa: D102 # above
    @property
    def needs_judge(self) -> bool: ...  # noqa: D102 # above

    def describe(self) -> dict[str, Any]:
        """What distinguishes runs of the task: its version, options, data and their checksum."""
        ...

    def samples(
        self, prompt: Prompt, *, length: int | None, count: int | None, seed: int
    ) -> list[Sample]:
        """The questions.

        Args:
            prompt: frames and counts.
            length: tokens of each prompt; for tasks that read a file: the most a prompt may have.
            count: how many; ``None``: all there are.
            seed: of everything random.
        """
        ...

    def score(self, sample: Sample, answer: str | None) -> Score:
        """The score of a final answer; ``None``: there was no answer."""
        ...


def find_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks that names stand for, such as ``needle``, ``multikey:8``, ``jsonl:my.jsonl``.

    Raises:
        ValueError: for an unknown name or an unusable argument.
        FileNotFoundError: for a file that is not there.
        ImportError: when a package is missing; the message holds its ``pip install`` line.
    """
    tasks: list[Task] = []
    for text in names:
        name, _, argument = text.partition(":")
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"unknown task {name!r}{meant} Give one of {', '.join(TASKS)}")
        module = importlib.import_module(f"swaa.evaluation.tasks.{name}")
        tasks += module.make(argument or None)
    return tasks


def parse_count(task: str, argument: str | None, default: int) -> int:
    """The number after a task's colon.

    Raises:
        ValueError: for anything but a whole number from 1 to 32.
    """
    if argument is None:
        return default
    if not argument.isdecimal() or not 1 <= int(argument) <= 32:
        raise ValueError(f"{task}:{argument}: expected a whole number from 1 to 32")
    return int(argument)
