"""Markdown that is made from results: tables, and their places in documents."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table.

    Args:
        headers: one title per column.
        rows: cells.
        left: how many of the first columns hold text; the others hold numbers.
    """
    marks = ["---"] * left + ["---:"] * (len(headers) - left)
    return "\n".join(map(line, [headers, marks, *rows]))


def line(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def replace_between(document: str, begin: str, text: str, end: str = "<!-- end -->") -> str:
    """A document with other text between two marks, which stay.

    Raises:
        ValueError: for a document without the marks.
    """
    marked = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    made, count = marked.subn(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", document)
    if count != 1:
        raise ValueError(f"the document does not contain the marks {begin!r} and {end!r}")
    return made
