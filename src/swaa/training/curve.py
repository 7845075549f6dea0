"""The curve of a training: every step's numbers as JSON, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swaa.pictures import new_figure, save_figure
from swaa.results import write_whole

_LOGGED = ("loss", "sft", "kl", "accuracy", "answer_tokens", "learning_rate", "grad_norm", "epoch")
"""A step's numbers: the objective, its parts (nats per token), share of right answer tokens."""


def curve(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per step, from a trainer's log."""
    return [
        {"step": entry["step"], **{name: entry[name] for name in _LOGGED if name in entry}}
        for entry in history
        if "loss" in entry
    ]


def save_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the rows, one JSON object per line."""
    write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def load_curve(path: Path) -> list[dict[str, Any]]:
    """The rows that :func:`save_curve` wrote."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def draw_curve(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Write a PNG: losses per token on the left, right answer tokens on the right."""
    figure = new_figure(9, 3.6, dpi=150)
    losses, accuracies = figure.subplots(1, 2)
    for name, label in (("sft", "answer, nats a token"), ("kl", "KL from full attention")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            losses.plot(*zip(*points, strict=True), label=label)
    losses.set(xlabel="step", yscale="log")
    losses.legend(frameon=False, fontsize=8)
    accuracies.plot(
        [row["step"] for row in rows if "accuracy" in row],
        [100 * row["accuracy"] for row in rows if "accuracy" in row],
    )
    accuracies.set(xlabel="step", title="answer tokens predicted rightly, %", ylim=(0, 101))
    save_figure(figure, path, title=title)
