"""Draw a ``generate`` result: seconds to the first token, per token, and KV bytes by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swaa.pictures import new_figure, save_figure

Row = Mapping[str, Any]

_PANELS = (
    ("seconds to the first token", lambda row: row["first_token_s"]["p50"]),
    ("milliseconds per token", lambda row: 1e3 * row["per_token_s"]["p50"]),
    ("KV after the prompt (MiB)", lambda row: row["kv_bytes"] / 2**20),
)


def plot_generate(rows: Sequence[Row], path: str | Path, *, title: str) -> None:
    """Write a PNG of three panels over the length of the prompt, at the smallest batch.

    Args:
        rows: of a ``generate`` result.
        path: file to write.
        title: above the panels; name model and GPU.

    Raises:
        ImportError: when matplotlib is missing.
        ValueError: when nothing was measured.
    """
    timed = [row for row in rows if row["kind"] in ("run", "t0") and not row["refused"]]
    if not timed:
        raise ValueError("nothing was measured, so there is nothing to plot")
    batch = min(row["batch"] for row in timed)
    lines: dict[str, list[Row]] = {}
    for row in sorted(timed, key=lambda row: row["tokens"]):
        if row["batch"] == batch:
            lines.setdefault(row["setting"], []).append(row)
    figure = new_figure(13, 4.2)
    axes = figure.subplots(1, len(_PANELS))
    for axis, (label, value) in zip(axes, _PANELS, strict=True):
        for name, points in lines.items():
            floor = points[0]["kind"] == "t0"
            if floor and label.startswith("KV"):
                continue  # its cache is that of stock attention
            axis.plot(
                [row["tokens"] for row in points],
                [value(row) for row in points],
                marker="o",
                markersize=4,
                label=name,
                color="black" if name == "stock" else "gray" if floor else None,
                linestyle=":" if floor else "-",
            )
        axis.set_xscale("log", base=2)
        if label.startswith("milliseconds"):
            axis.set_ylim(bottom=0)
        else:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:,g}")
        ticks = sorted({row["tokens"] for row in timed})
        axis.set_xticks(ticks, [_short(tick) for tick in ticks])
        axis.set_xlabel("prompt tokens")
        axis.set_title(label, fontsize=10, loc="left")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    save_figure(figure, path, title=f"{title}, batch {batch}")


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
