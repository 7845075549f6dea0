"""Pictures by matplotlib, which is an extra: figures without a display, written as PNG."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.extras import install_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Fail now rather than after minutes of measuring.

    Raises:
        ImportError: with the ``pip install`` line.
    """
    if not can_draw():
        raise ImportError(f"drawing needs matplotlib; run: {install_line('plot')}")


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of a size in inches; options and errors as of matplotlib and above."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), **{"layout": "constrained", "dpi": 120} | options)


def save_figure(figure: Figure, path: str | Path, *, title: str = "", comment: str = "") -> None:
    """Write a figure, open at the top and on the right.

    Args:
        figure: from :func:`new_figure`.
        path: of the PNG; its folder is created if missing.
        title: above all panels.
        comment: stored in the file, unseen.
    """
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Comment": comment} if comment else None)
