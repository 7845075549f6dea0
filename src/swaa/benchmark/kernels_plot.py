"""Draw measured kernels: one panel per phase and length, ours in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def plot_kernels(rows: Sequence[Row], path: str | Path, *, title: str) -> None:
    """Write a PNG of bars: useful TFLOP/s, or for decode the share of copy bandwidth.

    Args:
        rows: of a ``kernels`` result.
        path: file to write.
        title: above the panels; name the GPU.

    Raises:
        ValueError: when matplotlib is missing, or nothing was measured.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'swaa[plot]'") from None
    panels: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        if "p50" in row:
            panels.setdefault((row["phase"], row["tokens"], row["batch"]), []).append(row)
    if not panels:
        raise ValueError("nothing was measured, so there is nothing to plot")
    heights = [len(panel) for panel in panels.values()]
    figure = Figure(figsize=(9, 1.2 + 0.42 * sum(heights) + 0.8 * len(heights)), dpi=120)
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axis, ((phase, tokens, batch), panel) in zip(axes, panels.items(), strict=True):
        decode = phase == "decode"
        values = [100 * r["of_copy"] if decode else r["useful_flops"] / 1e12 for r in panel]
        labels = [f"{row['kernel']} ({row['mask']})" for row in panel]
        colors = ["tab:blue" if row["ours"] else "lightgray" for row in panel]
        bars = axis.barh(labels, values, color=colors)
        axis.bar_label(bars, [f"{v:.0f}  {_time(r)}" for v, r in zip(values, panel, strict=True)])
        axis.invert_yaxis()
        axis.margins(x=0.2)
        unit = "% of copy bandwidth" if decode else "useful TFLOP/s"
        axis.set_title(f"{phase}, {tokens:,} tokens, batch {batch}: {unit}", loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path)


def _time(row: Row) -> str:
    return f"{1e3 * row['p50']:.3g} ms"
