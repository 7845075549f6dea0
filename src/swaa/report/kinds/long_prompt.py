"""Results of ``swaa.benchmark.long_prompt``: engines on one long prompt, each alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from swaa.report.figures import Figures, Measurement
from swaa.report.folder import Run

_ENGINES = {"sglang": "SGLang", "vllm": "vLLM"}
"""Serving engines by kind of result."""
_TIMES = {
    "first_token_seconds": "time to first token",
    "each_token_seconds": "time per output token",
}


def read(run: Run) -> Figures:
    """What timing engines shows."""
    result = run.result
    settings = {setting["name"]: setting for setting in result.config["settings"]}
    return Figures(
        subject=result.provenance.model or result.name,
        setting=f"{len(settings)} engines",
        task="one request at a time",
        tokens=tuple(sorted({setting["prompt_tokens"] for setting in settings.values()})),
        outcome=_outcome(run, settings),
        measurements=tuple(
            item for row in result.rows for item in _measurements(run, row, settings[row["engine"]])
        ),
    )


def _outcome(run: Run, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Time to first token of the stock engine next to that of our fastest engine."""
    timed = {
        row["engine"]: row["first_token_seconds"]
        for row in run.result.rows
        if row["first_token_seconds"] is not None
    }
    ours = [name for name in timed if settings[name]["swaa"] is not None]
    names = [name for name in timed if name == "stock"]
    names += sorted(ours, key=lambda name: timed[name])[:1]
    if not names:
        return "neither stock nor ours was timed"
    said = ", ".join(f"{name.replace('_', ' ')} {timed[name]:.2f} s" for name in names)
    faster = f" ({timed[names[0]] / timed[names[1]]:.2f}x)" if len(names) == 2 else ""
    return f"first token: {said}{faster}"


def _measurements(
    run: Run, row: Mapping[str, Any], setting: Mapping[str, Any]
) -> Iterator[Measurement]:
    provenance = run.result.provenance
    engine = _ENGINES[run.result.kind]
    own: dict[str, Any] = {
        "group": f"{provenance.model}, {provenance.dtype}, {provenance.device}",
        "series": row["engine"].replace("_", " "),
        "tokens": setting["prompt_tokens"],
        "ours": setting["swaa"] is not None,
        "full": row["engine"] == "stock",
    }
    for name, measure in _TIMES.items():
        if row[name] is not None:
            best = f"{measure} in {engine}, best of {len(row['timed'])}"
            yield Measurement(chart="speed", measure=best, unit="s", value=row[name], **own)
    if row["traffic_seconds"]:
        size = f"{setting['traffic_prompt']:,} + {setting['traffic_answer']} tokens"
        yield Measurement(
            chart="speed",
            measure=f"throughput in {engine}, {_requests(setting['requests'])} of {size}",
            unit="tok/s",
            value=row["traffic_tokens"] / row["traffic_seconds"],
            more_is_better=True,
            **own | {"tokens": setting["traffic_prompt"]},
        )
    if row["live_kv_bytes"]:
        yield Measurement(
            chart="memory",
            measure=f"live KV of one request in {engine}",
            unit="B",
            value=row["live_kv_bytes"],
            **own,
        )
    if row["kv_tokens_per_gib"]:
        yield Measurement(
            chart="memory",
            measure=f"tokens that {engine}'s cache holds",
            unit="tok/GiB",
            value=row["kv_tokens_per_gib"],
            more_is_better=True,
            **own,
        )


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests at once"
