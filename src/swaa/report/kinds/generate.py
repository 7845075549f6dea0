"""Results of ``swaa bench generate``: recipes end to end against the best stock attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swaa.config import SWAAConfig
from swaa.report.figures import Figures, Measurement, Unit
from swaa.report.folder import Run
from swaa.results import Result

Row = Mapping[str, Any]

_TIMES = {"first_token_s": "time to first token", "per_token_s": "time per output token"}
_RATES = {"prefill_tokens_per_s": "prompt throughput", "decode_tokens_per_s": "output throughput"}
_LIMITS = {
    "first_token_of_limit": "share of Amdahl's limit reached, first token",
    "per_token_of_limit": "share of Amdahl's limit reached, output token",
}
_BYTES = {
    "kv_bytes": "KV after the prompt",
    "kv_predicted_bytes": "KV after the prompt, as swaa plan predicts it (arithmetic)",
    "kv_peak_bytes": "KV at its peak",
    "peak_bytes": "memory at its peak, weights included",
}


def read(run: Run) -> Figures:
    """What an end-to-end benchmark shows."""
    result, config = run.result, run.result.config
    rows = [row for row in result.rows if row["kind"] in ("run", "t0") and not row["refused"]]
    return Figures(
        subject=config["model"],
        setting=f"{len(config['recipes'])} recipes",
        task=f"generate {config['new_tokens']} tokens",
        tokens=tuple(sorted({row["tokens"] for row in rows})),
        outcome=_outcome(rows),
        measurements=tuple(item for row in rows for item in _measurements(result, row)),
        configs={name: SWAAConfig.from_dict(one) for name, one in config["recipes"].items()},
    )


def _outcome(rows: Sequence[Row]) -> str:
    """How much sooner each recipe's first token comes, at the longest prompt."""
    speedups = [row for row in rows if "first_token_speedup" in row and row["setting"] != "stock"]
    longest = max(speedups, key=lambda row: row["tokens"], default=None)
    if longest is None:
        return f"{len(rows)} rows"
    said = [
        f"{row['setting']} {row['first_token_speedup']:.2f}x"
        for row in speedups
        if (row["tokens"], row["batch"]) == (longest["tokens"], longest["batch"])
    ]
    return f"at {longest['tokens']:,}, first token vs stock: {', '.join(said)}"


def _measurements(result: Result, row: Row) -> Iterator[Measurement]:
    config = result.config
    compiled = "compiled" if config["compiled"] else "eager"
    own: dict[str, Any] = {
        "group": f"{config['model']}, {config['dtype']}, {compiled}, batch {row['batch']},"
        f" {result.provenance.device}",
        "series": _series(row),
        "tokens": row["tokens"],
        "ours": row["setting"] in config["recipes"],
        "full": row["setting"] == "stock",
    }
    for name, measure in _TIMES.items():
        yield _of("speed", measure, "s", row[name]["p50"], own | _spread(row, name))
    more = own | {"more_is_better": True}
    for name, measure in _RATES.items():
        yield _of("speed", measure, "tok/s", row[name], more)
    for name, measure in _LIMITS.items():
        if row["setting"] in config["recipes"] and row.get(name) is not None:
            yield _of("speed", measure, "share", row[name], more)
    for name, measure in _BYTES.items():
        # Runs without attention still fill their cache, but nobody reads it.
        if row["kind"] == "run" and row.get(name):
            yield _of("memory", measure, "B", row[name], own)


def _of(chart: Any, measure: str, unit: Unit, value: float, rest: Mapping[str, Any]) -> Measurement:
    return Measurement(chart=chart, measure=measure, unit=unit, value=value, **rest)


def _spread(row: Row, name: str) -> dict[str, Any]:
    """Percentiles of a time, and a note; a single timing has no percentiles."""
    once = row[name].get("timings") == 1
    notes = ["one timing"] if once else []
    limit = _limit(row, name.removesuffix("_s"))
    return {
        "low": None if once else row[name]["p20"],
        "high": None if once else row[name]["p80"],
        "note": "; ".join([*notes, limit] if limit else notes),
    }


def _limit(row: Row, name: str) -> str:
    """The limit set by Amdahl's law, where the row was measured against stock attention."""
    limit, reached = row.get(f"{name}_limit"), row.get(f"{name}_of_limit")
    if limit is None or reached is None or row["setting"] == "stock":
        return ""
    return f"Amdahl's limit {limit:.2f}x, {reached:.0%} of it reached".replace("%", " %")


def _series(row: Row) -> str:
    if row["setting"] == "stock":
        return f"stock: {row['attention']}"
    return "no attention at all" if row["kind"] == "t0" else row["setting"]
