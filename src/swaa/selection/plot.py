"""Draw a tuning: what recipes keep, against what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from swaa.pictures import new_figure, save_figure
from swaa.selection.report import Point, kept, kept_between, pareto


def draw(points: Sequence[Point], chosen: Point | None, path: Path, *, title: str) -> None:
    """Write a PNG: retention with its 95 % interval against prefill FLOPs, and against KV bytes.

    Args:
        points: full attention first; each with scores.
        chosen: the point to mark; ``None``: no point was chosen.
        path: file to write.
        title: above the panels.

    Raises:
        ImportError: when matplotlib is missing, with its ``pip install`` line.
    """
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2, sharey=True)
    front = pareto(points)
    sources = sorted({point.source for point in points})
    for axis, name, label in (
        (left, "flops", "prefill FLOPs, % of full attention's"),
        (right, "kv", "KV bytes, % of full attention's"),
    ):
        for source in sources:
            group = [point for point in points if point.source == source]
            shares = [kept(point, points[0]) for point in group]
            bounds = [kept_between(point, points[0]) for point in group]
            axis.errorbar(
                [100 * getattr(point.cost, name) for point in group],
                [100 * share for share in shares],
                [
                    [100 * (share - low) for share, (low, _) in zip(shares, bounds, strict=True)],
                    [100 * (high - share) for share, (_, high) in zip(shares, bounds, strict=True)],
                ],
                fmt="o",
                markersize=5,
                elinewidth=0.5,
                label=source,
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
    left.set_ylabel("kept, % of full attention's score (bars: 95 % interval)")
    left.legend(fontsize=7)
    save_figure(figure, path, title=title)
