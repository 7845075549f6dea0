"""What a tuning looks for, and what it found."""

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
from swaa.selection.continuation import NAME as CONTINUATION
from swaa.selection.report import Point, Role
from swaa.selection.search import Effort
from swaa.selection.signals import OF_HEADS, OF_LAYERS, SIGNALS
from swaa.selection.spaces import Units

KIND = "tune"
"""Folder of these results."""

SAMPLES, SAMPLES_OF_EACH = 32, 8
"""Samples to tune on: of a single kind of question, and of each where there are several."""

HELD_OUT, HELD_OUT_OF_EACH = 50, 24
"""Samples to report on, likewise, for tasks that can make any number."""

MIXTURE = ("multikey", "multiquery:2", "variable_tracking")
"""Tasks of the mixture, with running text: retrieval among others, several facts, chains."""

LADDER = ("layers=0,kv=1/4", "layers=0,kv=1/2", "layers=0", "layers=1/4", "layers=1/2")
"""Budgets that are searched when none is given."""

LADDER_OF_HEADS = ("kv=1/4", "kv=1/2", "kv=3/4")
"""The same where they buy KV heads."""

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, 0 to 1, and what is going on."""


Say = Callable[[str], None]
"""Called with one line for people, once it is known what is to be done."""


def check_method(method: str, units: Units = "layers") -> None:
    """Refuse a method other than ``search`` or a signal that ranks these units.

    Raises:
        ValueError: with the known names.
    """
    if method != "search" and method not in SIGNALS:
        raise ValueError(f"unknown method {method!r}; give search, or one of {', '.join(SIGNALS)}")
    if units != "layers" and method in OF_LAYERS:
        raise ValueError(f"{method} ranks layers, not KV heads; give {OF_HEADS}, or search")
    if units != "heads" and method == OF_HEADS:
        raise ValueError(f"{method} ranks KV heads: give --unit heads too, or another method")


def default_method(budgets: Sequence[Budget], *, tries: bool, units: Units) -> str:
    """How to choose where the user does not say.

    A search for full layers alone found nothing better than ``kl_out`` on either model measured
    (docs/measurements/tuning.md); for what generated tokens see, a search did.

    Args:
        budgets: as given; empty: a ladder.
        tries: whether other knobs are tried, which only a search does.
        units: what budgets of ``kv`` and ``decode`` buy.
    """
    ranked = budgets and not tries and units == "layers"
    for each in budgets:
        ranked = ranked and each.kv is None and each.decode is None and each.layers != 0
    return "kl_out" if ranked else "search"


def check_budgets(budgets: Sequence[Budget], units: Units, held_out: int | None) -> None:
    """Refuse budgets that buy nothing, and several of which nothing could choose one.

    Args:
        budgets: as given; empty: a ladder.
        units: what they buy.
        held_out: samples to report on.

    Raises:
        ValueError: with what to give instead.
    """
    for budget in budgets if units == "heads" else ():
        if budget.kv is None and budget.decode is None:
            raise ValueError(
                f"the budget {budget} buys no KV heads: give kv or decode, such as kv=50%"
            )
    if held_out == 0 and len(budgets) != 1:
        raise ValueError(
            "--held-out 0 reports nothing by which to choose among budgets: give one --budget"
        )


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What to look for.

    Attributes:
        tasks: give the questions to tune on; each counts the same.
        prompt: how questions are put.
        base: knobs that the search begins with.
        continuation: also tune on running text, by its distance from full attention.
        length: tokens of each prompt; for tasks that read a file, the most.
        tries: other values of ``window``, ``sink_tokens`` and ``dense_tail`` to try.
        budgets: the most that recipes may cost; empty: :data:`LADDER`, or
            :data:`LADDER_OF_HEADS`.
        samples: to tune on, of each kind of question; ``None``: 32 of a single kind, 8 of each of
            several.
        held_out: to report on, likewise; ``None``: 50 of a single kind, 24 of each of several,
            all others of a file; 0: nothing is reported, which takes one budget.
        report_on: other tasks to report on; empty: held-out samples of ``tasks``.
        units: what budgets of ``kv`` and ``decode`` buy: layers, KV heads, or both.
        objective: what the search minimises; ``None``: ``nll`` with gold answers to one kind of
            question, else ``kl``.
        keep: share of full attention's score that must be kept, on every task reported on.
        keep_mean: require this share only of the tasks' mean.
        method: ``search``, or a signal of :data:`swaa.selection.signals.SIGNALS` that ranks.
        baselines: what else to report: ``all``, or names of signals and periodic patterns
            (:func:`swaa.selection.baselines.check_baselines`).
        seed: of samples and their split.
        batch_size: samples at once.
        effort: how long to look.
        folder: of all results.

    Raises:
        ValueError: without anything to tune on, and for running text without a length.
    """

    tasks: Sequence[Task]
    prompt: Prompt
    base: SWAAConfig
    continuation: bool = False
    length: int | None = None
    tries: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    budgets: Sequence[Budget] = ()
    samples: int | None = None
    held_out: int | None = None
    report_on: Sequence[Task] = ()
    units: Units = "layers"
    objective: Objective | None = None
    keep: float = 0.95
    keep_mean: bool = False
    method: str = "search"
    baselines: Sequence[str] = ()
    seed: int = 0
    batch_size: int = 1
    effort: Effort = dataclasses.field(default_factory=Effort)
    folder: str | Path = results.FOLDER

    def __post_init__(self) -> None:
        check_budgets(self.budgets, self.units, self.held_out)
        if not self.kinds:
            raise ValueError("there is nothing to tune on; give tasks, running text, or both")
        if self.continuation and self.length is None:
            raise ValueError("running text is made to a length; say of how many tokens")

    @property
    def kinds(self) -> list[str]:
        """Names of what is tuned on."""
        return [*(task.name for task in self.tasks), *([CONTINUATION] if self.continuation else [])]

    @property
    def each(self) -> int:
        """Samples to tune on, of each kind."""
        few = SAMPLES if len(self.kinds) == 1 else SAMPLES_OF_EACH
        return few if self.samples is None else self.samples

    @property
    def held_out_of_each(self) -> int:
        """Samples to report on, of each kind that makes as many as wanted."""
        few = HELD_OUT if len(self.kinds) == 1 else HELD_OUT_OF_EACH
        return few if self.held_out is None else self.held_out


class Tuned(NamedTuple):
    """What was found.

    Attributes:
        points: every recipe measured, full attention first.
        chosen: the cheapest that keeps enough; ``None``: none does.
        unmet: why none does; empty: one does.
        path: of the result file.
        provenance: of the run.
        lengths: of the prompts of each role that was measured (tokens).
        seconds: by stage.
        notes: one line each: what was asked for and could not be done.
    """

    points: tuple[Point, ...]
    chosen: Point | None
    unmet: str
    path: Path
    provenance: results.Provenance
    lengths: Mapping[Role, int]
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()
