"""Draw a tuning: what recipes keep, over what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from swaa.selection.report import Point, kept, pareto


def draw(points: Sequence[Point], chosen: Point | None, path: Path, *, title: str) -> None:
    """Write a PNG: retention over prefill FLOPs, and over KV bytes.

    Args:
        points: full attention first; each with scores.
        chosen: marked; ``None``: none was.
        path: file to write.
        title: above the panels.

    Raises:
        ImportError: when matplotlib is missing, with its ``pip install`` line.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("drawing needs matplotlib; run: pip install 'swaa[plot]'") from None
    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    front = pareto(points)
    sources = sorted({point.source for point in points})
    for axis, name, label in (
        (left, "flops", "prefill FLOPs, % of full attention's"),
        (right, "kv", "KV bytes, % of full attention's"),
    ):
        for source in sources:
            group = [point for point in points if point.source == source]
            axis.scatter(
                [100 * getattr(point.cost, name) for point in group],
                [100 * kept(point, points[0]) for point in group],
                label=source,
                s=28,
            )
        for point in front:
            place = (100 * getattr(point.cost, name), 100 * kept(point, points[0]))
            weight = "bold" if point is chosen else "normal"
            axis.annotate(
                point.name, place, xytext=(3, 4), textcoords="offset points", fontsize=7,
                fontweight=weight,
            )  # fmt: skip
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    left.set_ylabel("kept of full attention's score, %")
    left.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
