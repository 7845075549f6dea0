"""From a run's samples to rows: accuracy with its interval, overall and by the needle's place."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swaa.config import SWAAConfig
from swaa.evaluation.sample import place
from swaa.statistics import wilson

PLACES = ("sinks", "window", "beyond")
"""Where needles may lie; see :meth:`swaa.evaluation.sample.Sample.place`."""


def summarize(samples: Sequence[Mapping[str, Any]], config: SWAAConfig) -> list[dict[str, Any]]:
    """One row for all samples, then one for each place with needles.

    Args:
        samples: of one run.
        config: its window and sinks decide which place is which.
    """
    rows = [{"place": "all", **_row(samples)}]
    placed = by_place(samples, window=config.window, sink_tokens=config.sink_tokens)
    return rows + [{"place": name, **_row(part)} for name, part in placed.items() if part]


def by_place(
    samples: Iterable[Mapping[str, Any]], *, window: int | None, sink_tokens: int
) -> dict[str, list[Mapping[str, Any]]]:
    """Samples grouped by where their needles lie."""
    parts: dict[str, list[Mapping[str, Any]]] = {name: [] for name in PLACES}
    for sample in samples:
        name = place(sample["length"], sample["needles"], window=window, sink_tokens=sink_tokens)
        if name is not None:
            parts[name].append(sample)
    return parts


def is_right(sample: Mapping[str, Any]) -> bool:
    """Whether the answer contains everything asked for."""
    return sample["score"] == 1


def _row(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    count, right = len(samples), sum(map(is_right, samples))
    answered = [sample for sample in samples if sample["answered"]]
    times = [sample["first_token_s"] for sample in samples if sample["first_token_s"] is not None]
    scores = [sample["score"] or 0.0 for sample in samples]
    low, high = wilson(right, count)
    return {
        "samples": count,
        "right": right,
        "accuracy": right / count,
        "low": low,
        "high": high,
        "score": sum(scores) / count,
        "no_answer": count - len(answered),
        "accuracy_of_answered": right / len(answered) if answered else None,
        "unjudged": sum(sample["score"] is None for sample in samples),
        "truncated": sum(sample["truncated"] for sample in samples),
        "first_token_s": statistics.median(times) if times else None,
    }
