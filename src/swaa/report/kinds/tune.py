"""Results of ``swaa tune``: recipes that a search found, on samples held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swaa.config import SWAAConfig
from swaa.report.cost import shares_of
from swaa.report.figures import Answers, Figures, model_name
from swaa.report.folder import Run


def read(run: Run) -> Figures:
    """What a tuning shows."""
    rows = run.result.rows
    return Figures(
        subject=model_name(run.result.provenance.model or run.result.name),
        setting=f"{len({row['recipe'] for row in rows})} recipes",
        task=", ".join(dict.fromkeys(row["task"] for row in rows)),
        outcome=_outcome(run),
        answers=tuple(_answers(run)),
        configs={row["recipe"]: SWAAConfig.from_dict(row["swaa"]) for row in rows},
    )


def _outcome(run: Run) -> str:
    """Full attention's answers in one task next to those of the recipe that is highest over all."""
    rows = [
        row
        for row in run.result.rows
        if "right" in row and row.get("role", "held out") == "held out"
    ]
    if not rows:
        return "running text only: see its likelihoods"
    found = [row for row in rows if row["swaa"]["window"] is not None] or rows
    means = {row["recipe"]: _mean(found, "recipe", row["recipe"]) for row in found}
    top = [row for row in found if means[row["recipe"]] == max(means.values())]
    name = min(top, key=lambda row: row["kv_bytes"])["recipe"]
    own = [row for row in found if row["recipe"] == name]
    hardest = min(own, key=lambda row: _mean(found, "task", row["task"]))
    full = [
        f"full attention {row['right']}, "
        for row in rows
        if row["swaa"]["window"] is None and row["task"] == hardest["task"] and row is not hardest
    ]
    equal = len({row["recipe"] for row in top})
    tied = f", {equal} equal, least KV" if equal > 1 else ""
    of = f" (highest of {len(means)} recipes here{tied})" if len(means) > 1 else ""
    said = f"{name}{of} {hardest['right']} of {hardest['samples']} right"
    return f"{hardest['task']}: {''.join(full[:1])}{said}"


def _mean(rows: Sequence[Mapping[str, Any]], name: str, value: str) -> float:
    """Share of right answers, over the rows of one recipe or of one task."""
    shares = [row["right"] / row["samples"] for row in rows if row[name] == value]
    return sum(shares) / len(shares)


def _answers(run: Run) -> Iterator[Answers]:
    result = run.result
    model, length = result.provenance.model or result.name, result.config.get("length")
    for row in result.rows:
        config = SWAAConfig.from_dict(row["swaa"])
        at = row.get("length", length)
        shares = (at and shares_of(model, config, at)) or {}
        yield Answers(
            group=f"{model_name(model)}, {_told_apart(run)}, {_asked(row)}, {_when(run)}",
            setting=row["recipe"],
            detail=config.describe(),
            accuracy=row["right"] / row["samples"] if "right" in row else row["score"],
            low=row["low"],
            high=row["high"],
            count=f"{row['right']} of {row['samples']}"
            if "right" in row
            else f"{100 * row['score']:.1f} % of full attention's likelihood a token",
            kv_share=row["kv_bytes"],
            flops_share=row["prefill_flops"],
            keys_share=shares.get("keys_share"),
            full=config.window is None,
        )


def _asked(row: Mapping[str, Any]) -> str:
    """The task and its samples, with their length where there are several lengths."""
    at = f" of {row['length']:,} tokens" if "length" in row else ""
    kind = "not tuned on" if row.get("role") == "other" else "held out"
    return f"{row['task']}, {row['samples']} samples{at} {kind}"


def _told_apart(run: Run) -> str:
    """What distinguishes this tuning from others."""
    config = run.result.config
    objective = config.get("objective") or "the default objective"
    budgets = config.get("budgets")
    parts = [
        f"tuned by {objective}",
        *([f"budgets {' and '.join(budgets)}"] if budgets else []),
        *(["beside baselines"] if config.get("baselines") else []),
    ]
    return ", ".join(parts)


def _when(run: Run) -> str:
    """To the second: each tuning splits and prices its samples anew, so no two share a picture."""
    return run.result.provenance.created[:19].replace("T", " ")
