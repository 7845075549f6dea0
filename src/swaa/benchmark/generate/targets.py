"""What a long prompt is meant to cost, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swaa.benchmark.generate.table import Row, Table
from swaa.config import SWAAConfig
from swaa.layers import resolve_layers
from swaa.results import Result

MODEL = "qwen3-4b"
"""Whose shape they are set for."""
TOKENS = 131_072
WINDOW = 2048


def targets_table(result: Result) -> Table | None:
    """The targets that the settings of a result speak of; None for another model or without rows.

    Args:
        result: of kind ``generate``.
    """
    if result.config["model"] != MODEL:
        return None
    rows = {
        (row["setting"], row["tokens"]): row
        for row in result.rows
        if row["kind"] == "run" and row["batch"] == 1 and not row["refused"]
    }
    depth = _depth(result)
    cells: list[tuple[str, ...]] = []
    for name, values in result.config["recipes"].items():
        config = SWAAConfig.from_dict(values)
        row = rows.get((name, TOKENS))
        if row is None or "first_token_speedup" not in row or config.window != WINDOW:
            continue
        if config.selected_layers:  # neither slide nor are they full
            continue
        full = len(resolve_layers(config.full_layers, depth, name="full_layers"))
        if full in (0, depth // 4):
            cells += _speed(name, row, sliding=full == 0)
        if full == 0 and config.full_decode is False and not config.dense_tail:
            cells += _decoding(name, row)
        if full == 0:
            cells += _growth(name, row, rows.get((name, TOKENS // 2)))
    headers = ("setting", "measure", "minimum", "aim", "measured", "minimum met")
    title = f"Targets at {TOKENS:,} tokens, batch 1, window {WINDOW:,}"
    return Table(title, headers, cells) if cells else None


def _speed(name: str, row: Row, *, sliding: bool) -> list[tuple[str, ...]]:
    least, aim = (4.0, 4.8) if sliding else (2.2, 2.45)
    what = "every layer sliding" if sliding else "a quarter of the layers full"
    speedup, share = row["first_token_speedup"], row["first_token_of_limit"]
    return [
        (
            name,
            f"first token faster than stock, {what}",
            f"{least:.2f}x",
            f"{aim:.2f}x",
            f"{speedup:.2f}x",
            _met(speedup >= least),
        ),
        (name, "the same, of its limit", "85%", "95%", f"{share:.1%}", _met(share >= 0.85)),
    ]


def _decoding(name: str, row: Row) -> list[tuple[str, ...]]:
    speedup, share = row["per_token_speedup"], row["per_token_of_limit"]
    held = row["kv_allocated_bytes"] or row["kv_bytes"]
    errors = {
        "held": held / row["kv_predicted_bytes"] - 1,
        "peak": row["kv_peak_bytes"] / row["kv_predicted_peak_bytes"] - 1,
    }
    return [
        (
            name,
            "token faster than stock full decoding",
            "1.50x",
            f"{row['per_token_limit']:.2f}x (its limit)",
            f"{speedup:.2f}x ({share:.0%} of it)",
            _met(speedup >= 1.5),
        ),
        *(
            (
                name,
                f"KV bytes {what}, against prediction",
                "3%",
                "-",
                f"{error:+.2%}",
                _met(abs(error) <= 0.03),
            )
            for what, error in errors.items()
        ),
    ]


def _growth(name: str, row: Row, half: Row | None) -> list[tuple[str, ...]]:
    if half is None:
        return []
    growth = row["first_token_s"]["p50"] / half["first_token_s"]["p50"]
    what = f"first token against {TOKENS // 2:,} tokens"
    return [(name, what, "2.10x at most", "-", f"{growth:.2f}x", _met(growth <= 2.1))]


def _depth(result: Result) -> int:
    from swaa.model_shapes import SHAPES

    shape: Mapping[str, Any] = SHAPES.get(result.config["model"], {})
    return shape.get("num_hidden_layers", 0)


def _met(holds: bool) -> str:
    return "yes" if holds else "no"
