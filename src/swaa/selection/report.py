"""What a tuning ends in: points with cost and retention, the choice among them, and a recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa.config import SWAAConfig
from swaa.evaluation.run import Outcome
from swaa.evaluation.statistics import Interval, mcnemar, retention, wilson
from swaa.results import Provenance, write_whole
from swaa.selection.board import mean
from swaa.selection.budget import Cost
from swaa.selection.passes import Scores

ENOUGH = 20
"""Samples held out below which what is kept deserves a warning: all right is 84 % or more there."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One recipe: what it costs, what it keeps.

    Attributes:
        name: what it is called in tables.
        source: ``search``, a signal, ``periodic``, ``base`` or ``full``.
        config: the recipe.
        cost: as shares of full attention's.
        nll: of the calibration answers (nats a token).
        kl: from full attention's calibration answers (nats a token).
        exact: calibration answers that greedy decoding would give word for word, 0 to 1.
        scores: by task held out: score of each sample, in order.
        also: other names of the same recipe: what else chose it.
    """

    name: str
    source: str
    config: SWAAConfig
    cost: Cost
    nll: float
    kl: float
    exact: float
    scores: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def held_out(self) -> list[float]:
        """The scores of all samples held out, whatever their task."""
        return [value for scores in self.scores.values() for value in scores]

    @property
    def score(self) -> float:
        """Mean score of all samples held out, 0 to 1."""
        return sum(self.held_out) / len(self.held_out)

    @property
    def spent(self) -> float:
        """One number to order recipes by: the mean of prefill FLOPs and KV bytes."""
        return (self.cost.flops + self.cost.kv) / 2


def point(name: str, source: str, config: SWAAConfig, cost: Cost, scores: Scores) -> Point:
    """A point with what a board measured on the samples tuned on; attributes are as of Point."""
    return Point(
        name=name,
        source=source,
        config=config,
        cost=cost,
        nll=mean(scores.nll),
        kl=mean(scores.kl),
        exact=mean([float(value) for value in scores.exact]),
    )


def with_scores(point: Point, outcomes: Iterable[Outcome]) -> Point:
    """The point with its measured scores."""
    scores = {
        outcome.run.task.name: [sample["score"] or 0.0 for sample in outcome.samples]
        for outcome in outcomes
        if outcome.run.setting == point.name
    }
    return dataclasses.replace(point, scores=scores)


def rows(points: Sequence[Point], full: Point) -> list[dict[str, Any]]:
    """One row a point and task, for a result file."""
    made = []
    for point in points:
        for task, scores in point.scores.items():
            right = [score == 1 for score in scores]
            theirs = [score == 1 for score in full.scores[task]]
            low, high = wilson(sum(right), len(right))
            made.append(
                {
                    "recipe": point.name,
                    "source": point.source,
                    "also": list(point.also),
                    "task": task,
                    "samples": len(right),
                    "right": sum(right),
                    "low": round(low, 4),
                    "high": round(high, 4),
                    "score": round(sum(scores) / len(scores), 4),
                    "retention": retention(sum(scores), sum(full.scores[task])),
                    "p_against_full": mcnemar(right, theirs),
                    "bits": "".join("01"[bit] for bit in right),
                    "full_layers": point.cost.layers,
                    "prefill_flops": round(point.cost.flops, 4),
                    "kv_bytes": round(point.cost.kv, 4),
                    "nll": round(point.nll, 4),
                    "kl": round(point.kl, 4),
                    "exact": round(point.exact, 4),
                    "swaa": point.config.to_dict(),
                }
            )
    return made


def kept(point: Point, full: Point) -> float:
    """What a recipe keeps of full attention's score held out, 0 to 1 and beyond.

    Raises:
        ValueError: when full attention itself scores nothing.
    """
    if not full.score:
        raise ValueError(
            "full attention itself answers none of the samples held out, so there is nothing to"
            " keep: give questions that the model can answer"
        )
    return point.score / full.score


def kept_between(point: Point, full: Point) -> Interval:
    """The 95 % interval of :func:`kept`, with full attention's score taken as it is."""
    low, high = wilson(sum(point.held_out), len(point.held_out))
    return Interval(low / full.score, high / full.score)


def counts(point: Point, full: Point) -> list[str]:
    """One line a task held out: how many answers are right, and how sure that makes the share.

    >>> full = Point(name="full", source="full", config=SWAAConfig(window=None),
    ...     cost=Cost(1, 1, 1, 1), nll=0, kl=0, exact=1, scores={"needle": [1, 1, 1, 1]})
    >>> counts(dataclasses.replace(full, scores={"needle": [1, 1, 1, 0]}), full)
    ['needle: 3 of 4 right (95 % interval 30 to 95 %), full attention 4 of 4 (51 to 100 %)']
    """
    lines = []
    for task, scores in point.scores.items():
        theirs = full.scores[task]
        line = (
            f"{task}: {_right(scores)} right (95 % interval {_interval(scores)} %),"
            f" full attention {_right(theirs)} ({_interval(theirs)} %)"
        )
        if {*scores, *theirs} - {0, 1}:  # only answers that score everything count as right
            means = (100 * sum(values) / len(values) for values in (scores, theirs))
            line += "; mean score {:.1f} %, full attention {:.1f} %".format(*means)
        lines.append(line)
    return lines


def _right(scores: Sequence[float]) -> str:
    return f"{sum(score == 1 for score in scores)} of {len(scores)}"


def _interval(scores: Sequence[float]) -> str:
    low, high = wilson(sum(score == 1 for score in scores), len(scores))
    return f"{100 * low:.0f} to {100 * high:.0f}"


def doubt(full: Point) -> str | None:
    """What to say of so few samples held out that chance may choose; ``None``: there are enough."""
    count = len(full.held_out)
    if count >= ENOUGH:
        return None
    return (
        f"only {count} samples were held out, so that what recipes keep is known roughly at best:"
        f" give more prompts, or raise --held-out, to {ENOUGH} or more"
    )


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats or equals in FLOPs, KV bytes and score at once."""

    def beaten(ours: Point, theirs: Point) -> bool:
        a = (ours.cost.flops, ours.cost.kv, -ours.score)
        b = (theirs.cost.flops, theirs.cost.kv, -theirs.score)
        return b != a and all(y <= x for x, y in zip(a, b, strict=True))

    return [p for p in points if not any(beaten(p, other) for other in points)]


def choose(points: Sequence[Point], full: Point, keep: float) -> Point:
    """The cheapest point that keeps enough.

    Raises:
        ValueError: when none does; names the best.
    """
    enough = [point for point in points if kept(point, full) >= keep]
    if not enough:
        best = max(points, key=lambda point: point.score)
        raise ValueError(
            f"no recipe within the budget keeps {keep:.0%} of full attention's score on the samples"
            f" held out; the best, {best.name} ({best.config.describe()}), keeps"
            f" {kept(best, full):.0%}: raise --budget or lower --keep (what was measured is kept)"
        )
    return min(enough, key=lambda point: (point.spent, -point.score))


def recipe(
    point: Point, full: Point, *, name: str, how: str, provenance: Provenance
) -> dict[str, Any]:
    """A recipe file's content: what `swaa generate --recipe FILE` reads, and where it comes from.

    Args:
        point: the choice.
        full: full attention.
        name: of the recipe.
        how: one sentence: data, search.
        provenance: of the run.
    """
    return {
        "name": name,
        "description": f"Tuned for {provenance.model}: keeps {kept(point, full):.0%} of full"
        f" attention's score at {point.cost.flops:.0%} of its prefill FLOPs and"
        f" {point.cost.kv:.0%} of its KV bytes.",
        "config": point.config.to_dict(),
        "provenance": {
            "source": how,
            "measured_on": counts(point, full),
            **dataclasses.asdict(provenance),
        },
    }


def write_recipe(content: Mapping[str, Any], path: Path) -> None:
    """Write a recipe as JSON, whole or not at all.

    Raises:
        OSError: naming the file.
    """
    write_whole(path, json.dumps(content, indent=2) + "\n")


def beats(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[float, float]:
    """Percentage points by which a row beats another on the same samples, and McNemar's p."""
    a, b = ([bit == "1" for bit in row["bits"]] for row in (ours, theirs))
    return 100 * (sum(a) - sum(b)) / len(a), mcnemar(a, b)
