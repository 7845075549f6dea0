"""The demo's table as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from swaa.demo.run import DemoRow
from swaa.pictures import new_figure, save_figure


def _speedup(row: DemoRow) -> str:
    return "noise" if row.is_noise else f"{row.speedup:.2f}x"


def draw(rows: Sequence[DemoRow], path: Path, *, title: str) -> None:
    """Write a PNG: one line per setting, one panel each for answers, time and memory."""
    figure = new_figure(10, 1.2 + 0.45 * len(rows), dpi=150)
    panels = (
        (
            f"answered, of {rows[0].needles}",
            [row.answered for row in rows],
            [f"{row.answered}" for row in rows],
        ),
        (
            "prefill, seconds (median)",
            [row.prefill_s for row in rows],
            [f"{row.prefill_s:.1f}  ({_speedup(row)})" for row in rows],
        ),
        (
            "KV, MiB",
            [row.kv_bytes / 2**20 for row in rows],
            [f"{row.kv_bytes / 2**20:.0f}" for row in rows],
        ),
    )
    colours = [f"C{index}" for index in range(len(rows))]
    for index, (name, values, labels) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), index)
        bars = axes.barh([row.setting for row in rows], values, color=colours)
        axes.bar_label(bars, labels, padding=3)
        axes.set_title(name, fontsize=10)
        axes.set_xlim(0, 1.35 * max(values) or 1)
        axes.invert_yaxis()
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        if index > 1:
            axes.yaxis.set_visible(False)
    save_figure(figure, path, title=title)
