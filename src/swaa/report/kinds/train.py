"""Results of a training: the full model's right answers before and after, on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swaa.config import SWAAConfig
from swaa.report.figures import Figures, Trained, model_name
from swaa.report.folder import Run
from swaa.statistics import wilson


def read(run: Run) -> Figures:
    """What a training shows."""
    result = run.result
    config = SWAAConfig.from_dict(result.config["swaa"])
    answers = [row for row in result.rows if "right" in row]
    tasks = tuple(dict.fromkeys(row["task"] for row in answers))
    return Figures(
        subject=model_name(result.provenance.model or result.name),
        setting=f"trained by {', '.join(_objectives(result.config))}",
        task=", ".join(tasks),
        outcome="; ".join(f"{task}: {_states(answers, task)}" for task in tasks),
        trainings=tuple(_trained(config.describe(), row) for row in answers),
        configs={config.describe(): config},
    )


def _trained(recipe: str, row: Mapping[str, Any]) -> Trained:
    low, high = wilson(row["right"], row["samples"])
    return Trained(
        recipe=recipe,
        task=row["task"],
        state=_STATES.get(row["state"]) or _after(row["state"]),
        right=row["right"],
        samples=row["samples"],
        low=low,
        high=high,
    )


_STATES = {"full": "full attention, untrained", "before": "recipe, untrained"}


def _after(state: str) -> str:
    """A state after training; the result names its objective, and the attention unless sliding."""
    objective, _, attention = state.partition(", ")
    return f"{attention or 'recipe'}, trained by {objective}"


def _objectives(config: Mapping[str, Any]) -> list[str]:
    """What was minimised: by one training, or by several that are measured together."""
    trainings = [config] if "settings" in config else config["trainings"].values()
    return [training["settings"]["objective"] for training in trainings]


def _states(answers: Sequence[Mapping[str, Any]], task: str) -> str:
    """Right answers of one task in every state, ``full 26 / before 14 / kl 14 of 40``."""
    rows = [row for row in answers if row["task"] == task]
    counts = " / ".join(f"{row['state']} {row['right']}" for row in rows)
    return f"{counts} of {rows[-1]['samples']}"
