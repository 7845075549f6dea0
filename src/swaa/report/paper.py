"""The paper's accuracy against time, drawn next to runs of this code."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swaa.config import SWAAConfig
from swaa.evaluation.paper import Row, Table, read_table
from swaa.report.figures import Answers


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What the paper reports.

    Attributes:
        source: title, number and version.
        notes: how its numbers were made, one sentence each.
        answers: accuracy against time, its Figure 2: those rows of Table 1 with a time in Table 5.
    """

    source: str
    notes: tuple[str, ...]
    answers: tuple[Answers, ...]


@functools.cache
def read_paper() -> Paper:
    """The paper's accuracy against its time."""
    text = importlib.resources.files("swaa.report").joinpath("paper.json").read_text("utf-8")
    times = json.loads(text)
    tables = [read_table(1, thinking=thinking) for thinking in (True, False)]
    answers = [
        _answers(table, row, column, accuracy, times["request_tokens"] / (1000 * speed))
        for table in tables
        for row in table.rows
        if (speed := _speed(times, row.config)) is not None
        for column, accuracy in zip(table.columns, row.accuracy, strict=True)
        if accuracy is not None
    ]
    return Paper(
        source=tables[0].source,
        notes=tuple(times["notes"]),
        answers=tuple(sorted(answers, key=lambda answer: answer.group)),
    )


def _answers(table: Table, row: Row, column: str, accuracy: float, seconds: float) -> Answers:
    tokens = f", {table.ruler_tokens // 1024}k tokens" if column.startswith("RULER") else ""
    described = row.config.describe()
    trained = ", trained" if row.trained else ""
    return Answers(
        group=f"paper: {table.model}, {column}{tokens}",
        setting=f"{described}{trained}",
        detail=described + (trained or ", not trained"),
        accuracy=round(accuracy / 100, 4),
        count=f"{accuracy} %",
        seconds=seconds,
        time="seconds per request at the throughput of Table 5",
        full=row.config.window is None and not row.trained,
        trained=row.trained,
    )


def _speed(times: Mapping[str, Any], config: SWAAConfig) -> float | None:
    """Thousand tokens/s of a setting; with other sinks where Table 5 has only those."""
    layers = config.layers(times["layers"])
    setting = {
        "window": config.window,
        "full_decode": config.full_decode,
        "full_share": sum(layer.full for layer in layers) / len(layers),
    }
    found = {
        speed["sink_tokens"]: speed["ktok_per_s"]
        for speed in times["speed"]
        if all(speed[name] == value for name, value in setting.items())
    }
    return found.get(config.sink_tokens, found.get(0))
