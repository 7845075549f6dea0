"""Unfinished runs: which rows were not begun, and which the next run need not measure.

A result holds every row from the start; those to come are marked. Rows of a size (tokens and
batch) are compared with one another, so all of a size come from one process: an incomplete size
is measured anew, with what it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from swaa.results import Provenance, Result

NOT_BEGUN = "not begun"
"""Why a row that was not begun is refused; a time limit is named after it."""

_SAME = {
    "swaa": "swaa",
    "commit": "commit",
    "dirty": "uncommitted changes",
    "versions": "versions",
    "device": "device",
    "model_revision": "weights",
}
"""Fields of the provenance that compared rows must share, and what to call each."""

Row = Mapping[str, Any]
Size = tuple[int, int]


def not_begun(rows: Iterable[Row]) -> int:
    """How many rows were not begun."""
    return sum((row.get("refused") or "").startswith(NOT_BEGUN) for row in rows)


def size_of(row: Row) -> Size | None:
    """Tokens and batch of a row; ``None`` for those that hold for every size."""
    return (row["tokens"], row["batch"]) if "tokens" in row else None


def rows_to_keep(unfinished: Result, now: Provenance) -> list[Row]:
    """The rows of every complete size, after those that hold for every size.

    Args:
        unfinished: a run of the same options.
        now: provenance of the rows to come.

    Returns:
        Nothing where no size is complete.

    Raises:
        ValueError: when such rows come from other code, versions, weights or another device.
    """
    cut = {size_of(row) for row in unfinished.rows if not_begun([row])}
    kept = [row for row in unfinished.rows if size_of(row) not in cut]
    if all(size_of(row) is None for row in kept):
        return []
    then = unfinished.provenance
    for name, word in _SAME.items():
        before, here = getattr(then, name), getattr(now, name)
        if before != here:
            raise ValueError(
                f"the unfinished run of {then.created[:10]} has {_changed(word, before, here)}: its"
                " rows cannot be mixed with new ones; use --again to measure all of them again"
            )
    return kept


def _changed(word: str, before: Any, here: Any) -> str:
    """``commit 1234abcd, here it is 5678dcba``; for versions, the first that differs."""
    if isinstance(before, Mapping):
        word = next(key for key in {**before, **here} if before.get(key) != here.get(key))
        before, here = before.get(word), here.get(word)
    return f"{word} {before}, here it is {here}"
