"""Results on keys chosen by content: the score of a choice, or a layer's cost; only table rows."""

from __future__ import annotations

from swaa.report.figures import Figures, model_name
from swaa.report.folder import Run

PAGES = ("score", "heads", "page", "keys")
"""What tells settings apart where pages are chosen in decoding."""


def read(run: Run) -> Figures:
    """What such a result shows: its rows are in the table, none of them is drawn."""
    result = run.result
    scored = [row for row in result.rows if "kl" in row]
    outcome = f"{len(result.rows)} calls timed"
    if scored:
        settings = {row.get("setting") or tuple(row[name] for name in PAGES) for row in scored}
        outcome = f"{len(settings)} settings by their divergence from full attention"
    return Figures(
        subject=model_name(result.provenance.model or result.name),
        setting="keys chosen in decoding" if "budgets" in result.config else "selected keys",
        task=", ".join(dict.fromkeys(row["task"] for row in scored)),
        outcome=outcome,
    )
