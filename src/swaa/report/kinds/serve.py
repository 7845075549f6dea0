"""Results of ``swaa bench serve``: one recipe on a server, under one workload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from swaa.config import SWAAConfig
from swaa.report.figures import Figures, Measurement
from swaa.report.folder import Run
from swaa.results import Result

_TIMES = {
    "ttft_s": "time to first token, served",
    "tpot_s": "time per output token, served",
    "itl_s": "time between pieces, served",
    "latency_s": "whole request, served",
}


def read(run: Run) -> Figures:
    """What a served workload shows."""
    result, config = run.result, run.result.config
    workload = config["workload"]
    rows = {row["metric"]: row for row in result.rows}
    asked = rows["requests"]
    return Figures(
        subject=config["model"],
        setting=config["setting"],
        task=f"{workload['requests']} requests, {_arrival(workload)}",
        tokens=(workload["input_tokens"],),
        outcome=f"{asked['total_tokens_per_s']:,.0f} tok/s, {asked['failed']} failed",
        measurements=tuple(_measurements(result, rows)),
        configs={config["setting"]: SWAAConfig.from_dict(config["swaa"])},
    )


def _measurements(result: Result, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Measurement]:
    config, workload = result.config, result.config["workload"]
    full = config["swaa"] is not None and config["swaa"]["window"] is None
    own: Mapping[str, Any] = {
        "chart": "speed",
        "group": f"{config['model']}, {workload['requests']} requests of"
        f" {workload['output_tokens']} new tokens, {_arrival(workload)},"
        f" {result.provenance.device}",
        "series": config["setting"],
        "tokens": workload["input_tokens"],
        "full": full,
        "ours": not full,
    }
    for name, measure in _TIMES.items():
        if (row := rows.get(name)) is not None:
            low, high = row["p20"], row["p80"]
            yield Measurement(
                measure=measure, unit="s", value=row["p50"], low=low, high=high, **own
            )
    yield Measurement(
        measure="throughput, prompt and output, served",
        unit="tok/s",
        value=rows["requests"]["total_tokens_per_s"],
        more_is_better=True,
        **own,
    )


def _arrival(workload: Mapping[str, Any]) -> str:
    rate = workload["rate"]
    together = "all at once" if rate is None else f"{rate:g} a second"
    limit = workload["concurrency"]
    return together if limit is None else f"{together}, {limit} under way"
