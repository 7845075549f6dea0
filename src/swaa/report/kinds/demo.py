"""Results of ``swaa demo``: needles answered, one long prefill timed, its KV counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swaa.config import SWAAConfig
from swaa.report.figures import Answers, Figures, Measurement, model_name
from swaa.report.folder import Run
from swaa.results import Result
from swaa.statistics import wilson


def read(run: Run) -> Figures:
    """What a demo shows."""
    result, config = run.result, run.result.config
    return Figures(
        subject=model_name(config["model"]),
        setting=f"{len(result.rows)} settings",
        task="needle; timed prefill",
        tokens=(config["needle_tokens"], config["prefill_tokens"]),
        outcome=_outcome(result.rows),
        answers=tuple(_answers(result)),
        measurements=tuple(_measurements(result)),
        configs={
            name: SWAAConfig.from_dict(one) for name, one in result.config["settings"].items()
        },
    )


def _outcome(rows: Sequence[Mapping[str, Any]]) -> str:
    """The most needles that a setting answered, and the fastest of the settings that did."""
    top = max(row["answered"] for row in rows)
    equal = [row for row in rows if row["answered"] == top]
    fast = max(equal, key=lambda row: row["speedup"])
    who = f"{fast['setting']}, prefill {fast['speedup']:.2f}x"
    if len(equal) > 1:
        who = f"{len(equal)} settings, fastest: {who}"
    return f"highest of {len(rows)} settings here: {top} of {fast['needles']} ({who})"


def _answers(result: Result) -> Iterator[Answers]:
    config, device = result.config, result.provenance.device
    for row in result.rows:
        setting = SWAAConfig.from_dict(config["settings"][row["setting"]])
        low, high = wilson(row["answered"], row["needles"])
        yield Answers(
            group=f"{model_name(config['model'])}, needle in {config['needle_tokens']:,} tokens,"
            f" {device}",
            setting=row["setting"],
            detail=setting.describe(),
            accuracy=row["answered"] / row["needles"],
            low=low,
            high=high,
            count=f"{row['answered']} of {row['needles']}",
            samples=row["needles"],
            seconds=row["prefill_s"],
            time=f"prefill of {config['prefill_tokens']:,} tokens, {_timed(config)}",
            kv_bytes=row["kv_bytes"],
            full=setting.window is None,
        )


def _timed(config: Mapping[str, Any]) -> str:
    """How often each setting was timed; the first demos timed once."""
    rounds = config.get("rounds", 1)
    return "one run" if rounds == 1 else f"median of {rounds}, settings in turns"


def _measurements(result: Result) -> Iterator[Measurement]:
    config, provenance = result.config, result.provenance
    shared: Mapping[str, Any] = {
        "group": f"{model_name(config['model'])}, {provenance.dtype}, {provenance.device}",
        "tokens": config["prefill_tokens"],
    }
    for row in result.rows:
        full = config["settings"][row["setting"]]["window"] is None
        own = shared | {"series": row["setting"], "full": full, "ours": not full}
        yield Measurement(
            chart="speed",
            measure=f"prefill, {_timed(config)}",
            unit="s",
            value=row["prefill_s"],
            **own,
        )
        yield Measurement(
            chart="memory", measure="KV after the prompt", unit="B", value=row["kv_bytes"], **own
        )
