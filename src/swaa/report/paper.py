"""The paper's own numbers, as its tables print them, beside which runs of this code are drawn."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swaa.config import SWAAConfig
from swaa.report.figures import Answers


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What the paper reports.

    Attributes:
        source: title, number and version.
        notes: how its numbers were made, one sentence each.
        answers: accuracy against time, its Figure 2: rows of Table 1 that Table 5 has a time for.
    """

    source: str
    notes: tuple[str, ...]
    answers: tuple[Answers, ...]


@functools.cache
def read_paper() -> Paper:
    """The paper's accuracy against its time."""
    text = importlib.resources.files("swaa.report").joinpath("paper.json").read_text("utf-8")
    tables = json.loads(text)
    answers = [
        _answers(tables, row, column, accuracy)
        for row in tables["accuracy"]
        for column, accuracy in enumerate(row["accuracy"])
        if accuracy is not None and _speed(tables, row) is not None
    ]
    return Paper(
        source=tables["source"],
        notes=tuple(tables["notes"]),
        answers=tuple(sorted(answers, key=lambda answer: answer.group)),
    )


def _answers(
    tables: Mapping[str, Any], row: Mapping[str, Any], column: int, accuracy: float
) -> Answers:
    model, task = tables["columns"][column]
    config = SWAAConfig(
        window=row["window"],
        sink_tokens=row["sink_tokens"],
        full_layers=row["full_layers"] or (),
        full_decode=row["full_decode"],
    )
    trained = ", trained" if row["trained"] else ""
    speed = _speed(tables, row)
    assert speed is not None
    return Answers(
        group=f"paper: {model}, {task}",
        setting=f"{config.describe()}{trained}",
        detail=config.describe() + (trained or ", not trained"),
        accuracy=round(accuracy / 100, 4),
        count=f"{accuracy} %",
        seconds=tables["request_tokens"] / (1000 * speed),
        time="seconds per request at the throughput of Table 5",
        full=config.window is None and not row["trained"],
        trained=row["trained"],
    )


def _speed(tables: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """Throughput of a setting (thousand tokens/s); of other sinks where Table 5 has only those."""
    found = {
        speed["sink_tokens"]: speed["ktok_per_s"]
        for speed in tables["speed"]
        if all(speed[name] == row[name] for name in ("window", "full_decode", "full_share"))
    }
    return found.get(row["sink_tokens"], found.get(0))
