"""Aligned tables and sizes for terminals."""

from __future__ import annotations

from collections.abc import Sequence

Cell = str | int | float | None
"""Text is aligned left, numbers right; ``None`` is shown as ``-``."""


def format_table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Lay out rows in aligned columns, without a trailing newline.

    A column is right-aligned when each of its cells is a number or text that starts with a digit.

    >>> print(format_table(("setting", "s"), [("full", 12.5), ("fast", 3)]))
    setting     s
    -------  ----
    full     12.5
    fast        3

    Args:
        headers: one title per column.
        rows: cells; round floats first, they are printed unchanged.
    """
    texts = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    columns = [[row[index] for row in texts] for index in range(len(headers))]
    widths = [
        max(map(len, [title, *column])) for title, column in zip(headers, columns, strict=True)
    ]
    right = [all(map(_numeric, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join(line(cells) for cells in [headers, ["-" * width for width in widths], *texts])


def format_bytes(count: float) -> str:
    """Bytes in readable units: ``288.0 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_flops(count: float) -> str:
    """Floating-point operations in readable units: ``4.83 TFLOP``."""
    for unit in ("", "K", "M", "G", "T"):
        if count < 1000:
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    return f"{count:.3g} PFLOP"


def _numeric(text: str) -> bool:
    return text == "-" or text.lstrip("-+")[:1].isdecimal()
