"""A ``generate`` result as lines and tables: speed and its limit, memory, the remaining costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Table(NamedTuple):
    """Cells ready for layout; text that starts with a digit is a number."""

    title: str
    headers: tuple[str, ...]
    cells: list[tuple[str, ...]]


def tables(rows: Sequence[Row]) -> list[Table]:
    """The tables for a result's rows; those with nothing to show are left out."""
    rows = sorted(rows, key=lambda row: (row.get("batch", 0), row.get("tokens", 0)))
    measured = [row for row in rows if row["kind"] == "run"]
    made = [
        _speed(
            "Seconds to the first token", measured, "first_token", ("first_token_s", 1, "{:.3f}")
        ),
        _speed(
            "Milliseconds per token after it",
            measured,
            "per_token",
            ("per_token_s", 1e3, "{:.2f}"),
        ),
        _memory(measured),
        _rest([row for row in rows if row["kind"] == "t0"]),
    ]
    return [table for table in made if table.cells]


def describe(row: Row) -> str:
    """One measured row as a line."""
    head = f"{row['tokens']:>7} x {row['batch']:<3} {row['setting']:<24}"
    if row["refused"]:
        return f"{head} not measured: {row['refused']}"
    first, token = row["first_token_s"]["p50"], row["per_token_s"]["p50"]
    line = f"{head} first token {first:.3f} s, then {1e3 * token:.2f} ms each"
    if "first_token_speedup" in row:
        line += (
            f"; {row['first_token_speedup']:.2f}x of {row['first_token_limit']:.2f}x,"
            f" {row['per_token_speedup']:.2f}x of {row['per_token_limit']:.2f}x"
        )
    elif "matmul_s" in row:
        line += (
            f"; matrix products {row['matmul_s']:.3f} s, weights {1e3 * row['weights_s']:.2f} ms"
        )
    return line


def _size(row: Row) -> tuple[str, str]:
    return f"{row['tokens']:,}", str(row["batch"])


def _speed(title: str, rows: Sequence[Row], what: str, value: tuple[str, float, str]) -> Table:
    key, factor, form = value
    throughput = {"first_token": "prefill_tokens_per_s", "per_token": "decode_tokens_per_s"}[what]
    cells = []
    for row in rows:
        head = (*_size(row), row["setting"])
        if row["refused"]:
            cells.append((*head, f"not measured: {row['refused']}", *[""] * 6))
            continue
        times = [form.format(factor * row[key][name]) for name in ("p50", "p20", "p80")]
        speed = ["-"] * 3
        if f"{what}_speedup" in row:
            speed = [f"{row[f'{what}_speedup']:.2f}x", f"{row[f'{what}_limit']:.2f}x"]
            speed.append(f"{row[f'{what}_of_limit']:.0%}")
        count = row[key]["timings"]
        spread = f"{times[1]} to {times[2]}" if count > 1 else "-"
        rate = f"{row[throughput]:,.0f}"
        cells.append((*head, times[0], spread, str(count), *speed, rate))
    headers = ("tokens", "batch", "setting", "median", "p20 to p80", "timings", "vs stock")
    return Table(title, (*headers, "limit", "of limit", "tokens/s"), cells)


def _memory(rows: Sequence[Row]) -> Table:
    cells = []
    for row in rows:
        if row["refused"]:
            continue
        held = row["kv_allocated_bytes"]
        # Without a GPU there is no allocator to ask, so the cache's own count is used.
        error = (row["kv_bytes"] if held is None else held) / row["kv_predicted_bytes"] - 1
        cells.append(
            (
                *_size(row),
                row["setting"],
                _mebibytes(row["kv_predicted_bytes"]),
                _mebibytes(row["kv_bytes"]),
                _mebibytes(held),
                f"{error:+.1%}",
                _mebibytes(row["kv_predicted_peak_bytes"]),
                _mebibytes(row["kv_peak_bytes"]),
                _mebibytes(row["peak_bytes"]),
            )
        )
    headers = ("tokens", "batch", "setting", "KV predicted", "KV held", "KV allocated")
    more = ("allocated vs predicted", "KV peak predicted", "KV peak", "peak of everything")
    return Table("Memory once the prompt is computed, and its peak (MiB)", (*headers, *more), cells)


def _rest(rows: Sequence[Row]) -> Table:
    cells = []
    for row in rows:
        if row["refused"] or "matmul_s" not in row:
            continue
        first, token = row["first_token_s"]["p50"], row["per_token_s"]["p50"]
        cells.append(
            (
                *_size(row),
                f"{first:.3f}",
                f"{row['matmul_s']:.3f}",
                f"{row['matmul_s'] / first:.0%}",
                f"{1e3 * token:.2f}",
                f"{1e3 * row['weights_s']:.2f}",
                f"{row['weights_s'] / token:.0%}",
            )
        )
    headers = ("tokens", "batch", "first token without attention (s)", "matrix products (s)")
    more = ("of it", "token without attention (ms)", "reading weights (ms)", "of it")
    title = "Without attention, and the least that takes at the rates measured in the same run"
    return Table(title, (*headers, *more), cells)


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:,.1f}"
