"""The result of a tuning: points with cost and retention, the choice among them, and a recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from swaa.config import SWAAConfig
from swaa.results import Provenance, write_whole
from swaa.selection.batches import Scores
from swaa.selection.board import mean
from swaa.selection.budget import Cost
from swaa.selection.continuation import NAME as CONTINUATION
from swaa.statistics import Interval, mcnemar, retention, wilson

ENOUGH = 20
"""With fewer held-out samples, retention needs a warning; 20 of 20 right means 84 % or more."""

MEASURABLE = 0.1
"""Where full attention answers a smaller share rightly, what is kept of it is not reported."""

Role = Literal["held out", "longer", "other"]
"""Which samples scores are of: held out, the same tasks at longer prompts, kinds not tuned on."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One recipe: what it costs, what it keeps.

    Attributes:
        name: as in tables.
        source: ``search``, a signal, ``periodic``, ``base`` or ``full``.
        config: the recipe.
        cost: as shares of full attention's.
        nll: of the calibration answers (nats per token).
        kl: from full attention's calibration answers (nats per token).
        exact: calibration answers that greedy decoding would give word for word, 0 to 1.
        scores: of held-out samples, by task: each sample's score, in order.
        longer: the same tasks at longer prompts than the search used, where that was measured.
        others: kinds of questions that were not tuned on, likewise.
        also: other names of the same recipe: those of other methods that chose it.
    """

    name: str
    source: str
    config: SWAAConfig
    cost: Cost
    nll: float
    kl: float
    exact: float
    scores: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    longer: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    others: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """Mean of the tasks' mean scores, held out, 0 to 1."""
        return mean([mean(scores) for scores in self.scores.values()])

    def of(self, role: Role) -> Mapping[str, Sequence[float]]:
        """The scores of a role, by task."""
        return {"held out": self.scores, "longer": self.longer, "other": self.others}[role]

    @property
    def spent(self) -> float:
        """One number to order recipes by: the mean of prefill FLOPs and KV bytes."""
        return (self.cost.flops + self.cost.kv) / 2


def point(name: str, source: str, config: SWAAConfig, cost: Cost, scores: Scores) -> Point:
    """A point with a board's scores on the samples tuned on; attributes are as in Point."""
    return Point(
        name=name,
        source=source,
        config=config,
        cost=cost,
        nll=mean(scores.nll),
        kl=mean(scores.kl),
        exact=mean([float(value) for value in scores.exact]),
    )


def rows(points: Sequence[Point], full: Point, lengths: Mapping[Role, int]) -> list[dict[str, Any]]:
    """One row per point, role and task, for a result file.

    Args:
        points: all points, with full attention's.
        full: full attention.
        lengths: of the prompts of each role that was measured (tokens).
    """
    return [
        {
            "recipe": point.name,
            "source": point.source,
            "also": list(point.also),
            "task": task,
            "role": role,
            "length": length,
            **_measured(task, scores, full.of(role)[task]),
            "full_layers": point.cost.layers,
            "prefill_flops": round(point.cost.flops, 4),
            "kv_bytes": round(point.cost.kv, 4),
            "nll": round(point.nll, 4),
            "kl": round(point.kl, 4),
            "exact": round(point.exact, 4),
            "swaa": point.config.to_dict(),
        }
        for point in points
        for role, length in lengths.items()
        for task, scores in point.of(role).items()
    ]


def _measured(task: str, scores: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """A row's numbers; running text has a score only, since no answer is right or wrong."""
    low, high = interval(task, scores)
    found = {
        "samples": len(scores),
        "low": round(low, 4),
        "high": round(high, 4),
        "score": round(mean(scores), 4),
        "retention": retention(sum(scores), sum(theirs)),
    }
    if task == CONTINUATION:
        return found
    right, full = ([score == 1 for score in one] for one in (scores, theirs))
    return found | {
        "right": sum(right),
        "p_against_full": mcnemar(right, full),
        "bits": "".join("01"[bit] for bit in right),
    }


def interval(task: str, scores: Sequence[float]) -> Interval:
    """The 95 % interval of right answers; for running text, of the score."""
    return wilson(sum(scores) if task == CONTINUATION else _right(scores), len(scores))


def measurable(full: Point, role: Role = "held out") -> list[str]:
    """Tasks in which full attention answers enough for retention to mean something."""
    return [
        task
        for task, scores in full.of(role).items()
        if _right(scores) >= max(1, MEASURABLE * len(scores))
    ]


def unmeasurable(full: Point, role: Role = "held out") -> list[str]:
    """One line for each task that is not :func:`measurable`."""
    known = measurable(full, role)
    return [
        f"{task}: not measurable, full attention itself answers {_right(scores)} of {len(scores)}"
        for task, scores in full.of(role).items()
        if task not in known
    ]


def kept_by_task(point: Point, full: Point, role: Role = "held out") -> dict[str, float]:
    """The share of full attention's score that a recipe keeps, by measurable task; may exceed 1."""
    return {
        task: mean(point.of(role)[task]) / mean(full.of(role)[task])
        for task in measurable(full, role)
    }


def kept(point: Point, full: Point, *, average: bool = False) -> float:
    """What a recipe keeps of full attention's score on the worst of the held-out tasks.

    Args:
        point: the recipe.
        full: full attention.
        average: return the mean over tasks instead.

    Raises:
        ValueError: when full attention itself answers too few samples of every task.
    """
    shares = list(_require(point, full).values())
    return mean(shares) if average else min(shares)


def worst(point: Point, full: Point) -> str:
    """The task in which a recipe keeps least."""
    shares = _require(point, full)
    return min(shares, key=lambda task: shares[task])


def _require(point: Point, full: Point) -> dict[str, float]:
    shares = kept_by_task(point, full)
    if not shares:
        raise ValueError(
            "full attention itself answers none of the samples held out, or hardly any, so there"
            " is nothing to keep: give questions that the model can answer"
        )
    return shares


def kept_between(point: Point, full: Point) -> Interval:
    """The 95 % interval of :func:`kept`, taking full attention's score as exact."""
    task = worst(point, full)
    scores, theirs = point.scores[task], mean(full.scores[task])
    low, high = wilson(sum(scores), len(scores))
    return Interval(low / theirs, high / theirs)


def counts(point: Point, full: Point, role: Role = "held out") -> list[str]:
    """One line per task: how many answers are right, and the interval of that share.

    >>> full = Point(name="full", source="full", config=SWAAConfig(window=None),
    ...     cost=Cost(1, 1, 1, 1), nll=0, kl=0, exact=1, scores={"needle": [1, 1, 1, 1]})
    >>> counts(dataclasses.replace(full, scores={"needle": [1, 1, 1, 0]}), full)
    ['needle: 3 of 4 right (95 % interval 30 to 95 %), full attention 4 of 4 (51 to 100 %)']
    """
    known = measurable(full, role)
    lines = []
    for task, scores in point.of(role).items():
        theirs = full.of(role)[task]
        if task == CONTINUATION:
            lines.append(
                f"{task}: {100 * mean(scores):.1f} % of full attention's likelihood a token, where"
                f" it looks far ({len(scores)} texts; 95 % interval {_interval(task, scores)} %)"
            )
            continue
        line = (
            f"{task}: {_count(scores)} right (95 % interval {_interval(task, scores)} %),"
            f" full attention {_count(theirs)} ({_interval(task, theirs)} %)"
        )
        if {*scores, *theirs} - {0, 1}:  # only answers with a score of 1 count as right
            means = (100 * mean(values) for values in (scores, theirs))
            line += "; mean score {:.1f} %, full attention {:.1f} %".format(*means)
        lines.append(line if task in known else f"{line}: not measurable")
    return lines


def lost(point: Point, full: Point) -> str:
    """One line: what a recipe keeps of each kind of question that was not tuned on."""
    shares = kept_by_task(point, full, "other")
    parts = [
        f"{task}: {100 * share:.0f} % kept{_against(point.others[task], full.others[task], task)}"
        for task, share in sorted(shares.items(), key=lambda item: item[1])
    ]
    return "; ".join([*parts, *unmeasurable(full, "other")])


def _against(scores: Sequence[float], theirs: Sequence[float], task: str) -> str:
    if task == CONTINUATION:
        return ""
    return f" ({_count(scores)} right, full attention {_count(theirs)})"


def _right(scores: Sequence[float]) -> int:
    return sum(score == 1 for score in scores)


def _count(scores: Sequence[float]) -> str:
    return f"{_right(scores)} of {len(scores)}"


def _interval(task: str, scores: Sequence[float]) -> str:
    low, high = interval(task, scores)
    return f"{100 * low:.0f} to {100 * high:.0f}"


def doubt(full: Point) -> str | None:
    """A warning if so few samples are held out that chance may choose; ``None``: enough are."""
    count = min(map(len, full.scores.values()))
    if count >= ENOUGH:
        return None
    of = " of a task" if len(full.scores) > 1 else ""
    return (
        f"only {count} samples{of} were held out, so that what recipes keep is known roughly at"
        f" best: give more prompts, or raise --held-out, to {ENOUGH} or more"
    )


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other point equals or beats in FLOPs, KV bytes and score at once."""

    def beaten(ours: Point, theirs: Point) -> bool:
        a = (ours.cost.flops, ours.cost.kv, -ours.score)
        b = (theirs.cost.flops, theirs.cost.kv, -theirs.score)
        return b != a and all(y <= x for x, y in zip(a, b, strict=True))

    return [p for p in points if not any(beaten(p, other) for other in points)]


def choose(points: Sequence[Point], full: Point, keep: float, *, average: bool = False) -> Point:
    """The cheapest point that keeps enough.

    Args:
        points: to choose from.
        full: full attention.
        keep: share of full attention's score to keep, on every task.
        average: compare the mean over tasks instead.

    Raises:
        ValueError: when no point does; names the best.
    """
    enough = [point for point in points if kept(point, full, average=average) >= keep]
    if not enough:
        best = max(points, key=lambda point: kept(point, full, average=average))
        of, least = "", ""
        if len(full.scores) > 1:
            of = " as the tasks' mean" if average else " on every task"
            least = "" if average else f" of {worst(best, full)}"
        raise ValueError(
            f"no recipe within the budget keeps {keep:.0%} of full attention's score{of} on the"
            f" samples held out; the best, {best.name} ({best.config.describe()}), keeps"
            f" {kept(best, full, average=average):.0%}{least}: raise --budget or lower --keep (what"
            " was measured is kept)"
        )
    return min(enough, key=lambda point: (point.spent, -point.score))


def recipe(
    point: Point, full: Point, *, name: str, how: str, provenance: Provenance
) -> dict[str, Any]:
    """A recipe file's content: what `swaa generate --recipe FILE` reads, and its origin.

    Args:
        point: the choice.
        full: full attention.
        name: of the recipe.
        how: one sentence: data and search.
        provenance: of the run.
    """
    shares = ", ".join(
        f"{share:.0%} on {task}" for task, share in kept_by_task(point, full).items()
    )
    beside = f" Not tuned on: {lost(point, full)}." if point.others else ""
    keeps = f"keeps {shares} of full attention's score" if point.scores else "not verified"
    return {
        "name": name,
        "description": f"Tuned for {provenance.model}: {keeps}, at {point.cost.flops:.0%} of its"
        f" prefill FLOPs and {point.cost.kv:.0%} of its KV bytes.{beside}",
        "config": point.config.to_dict(),
        "provenance": {
            "source": how,
            "measured_on": [
                *counts(point, full),
                *(f"longer prompts: {line}" for line in counts(point, full, "longer")),
                *(f"not tuned on: {line}" for line in counts(point, full, "other")),
            ],
            **dataclasses.asdict(provenance),
        },
    }


def write_recipe(content: Mapping[str, Any], path: Path) -> None:
    """Write a recipe as JSON, completely or not at all.

    Raises:
        OSError: naming the file.
    """
    write_whole(path, json.dumps(content, indent=2) + "\n")


def beats(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[float, float]:
    """Percentage points by which a row beats another on the same samples, and McNemar's p."""
    a, b = ([bit == "1" for bit in row["bits"]] for row in (ours, theirs))
    return 100 * (sum(a) - sum(b)) / len(a), mcnemar(a, b)
