"""What a tuning is asked for, and what it found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from swaa import results
from swaa.config import SWAAConfig
from swaa.evaluation.prompt import Prompt
from swaa.evaluation.tasks import Task
from swaa.selection.board import Objective
from swaa.selection.budget import Budget
from swaa.selection.report import Point
from swaa.selection.search import Effort
from swaa.selection.signals import SIGNALS

KIND = "tune"
"""Folder of these results."""

HELD_OUT = 50
"""Samples to report on where none are named and a task makes as many as wanted."""

LADDER = ("layers=0,kv=1/4", "layers=0,kv=1/2", "layers=0", "layers=1/4", "layers=1/2")
"""Budgets that are searched when none is given."""

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, 0 to 1, and what is going on."""


Say = Callable[[str], None]
"""Called with one line for people, once what is to be done is known."""


def check_method(method: str) -> None:
    """Refuse what is neither ``search`` nor a signal.

    Raises:
        ValueError: naming the known ones.
    """
    if method != "search" and method not in SIGNALS:
        raise ValueError(f"unknown method {method!r}; give search, or one of {', '.join(SIGNALS)}")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is to be found.

    Attributes:
        task: gives the questions to tune on.
        prompt: how they are put.
        base: knobs that the search begins with.
        length: tokens of each prompt; of tasks that read a file, the most.
        tries: values of ``window``, ``sink_tokens`` and ``dense_tail`` to try beside the base's.
        budgets: what recipes may cost; empty: :data:`LADDER`.
        samples: to tune on.
        held_out: to report on; ``None``: 50, or all others of a file.
        report_on: other tasks to report on; empty: held-out samples of ``task``.
        objective: what the search makes small; ``None``: ``nll`` with gold answers, else ``kl``.
        keep: share of full attention's score that must be kept.
        method: ``search``, or a signal of :data:`swaa.selection.signals.SIGNALS` that ranks.
        baselines: also report periodic patterns and every signal's choice.
        seed: of samples and their split.
        batch_size: samples at once.
        effort: how long to look.
        folder: of all results.
    """

    task: Task
    prompt: Prompt
    base: SWAAConfig
    length: int | None = None
    tries: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    budgets: Sequence[Budget] = ()
    samples: int = 32
    held_out: int | None = None
    report_on: Sequence[Task] = ()
    objective: Objective | None = None
    keep: float = 0.95
    method: str = "search"
    baselines: bool = False
    seed: int = 0
    batch_size: int = 1
    effort: Effort = dataclasses.field(default_factory=Effort)
    folder: str | Path = results.FOLDER


class Tuned(NamedTuple):
    """What was found.

    Attributes:
        points: every recipe measured, full attention first.
        path: of the result file.
        provenance: of the run.
        seconds: by stage.
        notes: one line each: what was asked for and could not be done.
    """

    points: tuple[Point, ...]
    path: Path
    provenance: results.Provenance
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()
