"""Results of ``swaa tune``: recipes that a search found, on samples held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from swaa.config import SWAAConfig
from swaa.report.cost import shares_of
from swaa.report.figures import Answers, Figures
from swaa.report.folder import Run


def read(run: Run) -> Figures:
    """What a tuning shows."""
    rows = run.result.rows
    return Figures(
        subject=run.result.provenance.model or run.result.name,
        setting=f"{len({row['recipe'] for row in rows})} recipes",
        task=", ".join(dict.fromkeys(row["task"] for row in rows)),
        outcome=_outcome(run),
        answers=tuple(_answers(run)),
        configs={row["recipe"]: SWAAConfig.from_dict(row["swaa"]) for row in rows},
    )


def _outcome(run: Run) -> str:
    """Full attention's answers beside those of the best recipe, in one task."""
    best = _best(run)
    full = [
        f"full attention {row['right']}, "
        for row in run.result.rows
        if row["swaa"]["window"] is None and row["task"] == best["task"] and row is not best
    ]
    said = f"{best['recipe']} {best['right']} of {best['samples']} right"
    return f"{best['task']}: {''.join(full[:1])}{said}"


def _best(run: Run) -> Mapping[str, Any]:
    """What the recipe that is best over all tasks, as its table ranks, makes of the hardest one."""
    rows = run.result.rows
    found = [row for row in rows if row["swaa"]["window"] is not None] or rows

    def mean(name: str, value: str) -> float:
        shares = [row["right"] / row["samples"] for row in found if row[name] == value]
        return sum(shares) / len(shares)

    best = max(found, key=lambda row: (mean("recipe", row["recipe"]), -row["kv_bytes"]))
    same = [row for row in found if row["recipe"] == best["recipe"]]
    return min(same, key=lambda row: mean("task", row["task"]))


def _answers(run: Run) -> Iterator[Answers]:
    result = run.result
    model, length = result.provenance.model or result.name, result.config.get("length")
    for row in result.rows:
        config = SWAAConfig.from_dict(row["swaa"])
        shares = None if length is None else shares_of(model, config, length)
        yield Answers(
            # Each tuning splits and prices its samples anew.
            group=f"{model}, tuned, {row['task']}, {row['samples']} samples held out,"
            f" {run.path.rpartition('-')[2].removesuffix('.json')}",
            setting=row["recipe"],
            detail=config.describe(),
            accuracy=row["right"] / row["samples"],
            low=row["low"],
            high=row["high"],
            count=f"{row['right']} of {row['samples']}",
            kv_share=row["kv_bytes"],
            flops_share=row["prefill_flops"],
            keys_share=None if shares is None else shares.keys,
            full=config.window is None,
        )
