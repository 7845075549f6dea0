"""Draw measured kernels: one panel per phase and length, ours in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swaa.pictures import new_figure, save_figure

Row = Mapping[str, Any]


def plot_kernels(rows: Sequence[Row], path: str | Path, *, title: str) -> None:
    """Write a PNG of bars: useful TFLOP/s, or for decode the share of copy bandwidth.

    Args:
        rows: of a ``kernels`` result.
        path: file to write.
        title: above the panels; name the GPU.

    Raises:
        ImportError: when matplotlib is missing.
        ValueError: when nothing was measured.
    """
    panels: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        if "p50" in row:
            panels.setdefault((row["phase"], row["tokens"], row["batch"]), []).append(row)
    if not panels:
        raise ValueError("nothing was measured, so there is nothing to plot")
    heights = [len(panel) for panel in panels.values()]
    figure = new_figure(9, 0.6 + 0.3 * sum(heights) + 0.7 * len(heights))
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axis, ((phase, tokens, batch), panel) in zip(axes, panels.items(), strict=True):
        decode = phase == "decode"
        values = [100 * r["of_copy"] if decode else r["useful_flops"] / 1e12 for r in panel]
        labels = [f"{row['kernel']} ({row['mask']})" for row in panel]
        colors = ["tab:blue" if row["ours"] else "lightgray" for row in panel]
        bars = axis.barh(labels, values, color=colors)
        texts = [f"{value:.0f}  {_time(row)}" for value, row in zip(values, panel, strict=True)]
        axis.bar_label(bars, texts, padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.25)
        axis.tick_params(labelsize=8)
        unit = "% of copy bandwidth" if decode else "useful TFLOP/s"
        axis.set_title(f"{phase}, {tokens:,} tokens, batch {batch}: {unit}", loc="left", fontsize=9)
    save_figure(figure, path, title=title)


def _time(row: Row) -> str:
    return f"{1e3 * row['p50']:.3g} ms"
