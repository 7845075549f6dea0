"""The README's picture and tables: answers and time to first token against prompt length.

``python -m swaa.benchmark.overview`` writes ``docs/overview.png`` and the tables between the marks
in ``README.md``, both from the files under ``results/`` alone. A test compares them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swaa import results
from swaa.documents import replace_between, table
from swaa.pictures import new_figure, save_figure

Row = Mapping[str, Any]

MODEL = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
"""Whose answers are shown."""

TASKS = {
    "multikey": "one number among others",
    "multiquery:2": "two numbers at once",
    "variable_tracking": "chains of assignments",
}
"""The tasks, in the README's words."""

HEADS = {"multikey": "number", "multiquery:2": "pair", "variable_tracking": "chain"}
"""The same, for columns."""

RECIPES = ("full", "selected", "quality", "balanced", "fast")
"""The rows of the table of answers."""

TIMED = ("generate/qwen3-4b-c078e24f.json", "generate/qwen3-4b-783a8f22.json")
"""Files with times to first token; each recipe is taken from the first file that has it."""

OWN = "generate/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf-5baef001.json"
"""File with the times of the model whose answers are shown."""

LONGEST = 131_072
"""Prompt tokens in the table of times."""

SETTINGS = {
    "stock": "full attention, fastest stock kernels",
    "selected": "`selected`",
    "balanced": "`balanced`",
    "fast": "`fast`",
    "naive sink_tokens=128": "window and sinks only",
}
"""The rows of the table of times."""

COLOURS = {"full": "black", "stock": "black"} | {
    name: f"C{index}" for index, name in enumerate(("selected", "quality", "balanced", "fast"))
}


def read_answers(folder: str | Path) -> dict[tuple[str, int], dict[str, Row]]:
    """The rows of each recipe, by task and prompt length; of several, those of the newest file."""
    found: dict[tuple[str, int], dict[str, Row]] = {}
    files = [results.load(path) for path in sorted((Path(folder) / "eval").glob("*.json"))]
    for result in sorted(files, key=lambda result: result.provenance.created):
        if result.config["model"] != MODEL:
            continue
        key = str(result.provenance.data), int(result.config["length"])
        if key[0] not in TASKS:
            continue
        rows = {row["setting"]: row for row in result.rows if row["place"] == "all"}
        found.setdefault(key, {}).update(rows)
    return {key: found[key] for key in sorted(found, key=lambda key: ([*TASKS].index(key[0]), key))}


def read_times(folder: str | Path) -> dict[str, dict[int, Row]]:
    """The timed rows of each setting, by prompt length."""
    found: dict[str, dict[int, Row]] = {}
    for name in TIMED:
        rows = results.load(Path(folder) / name).rows
        for setting in [name for name in SETTINGS if name not in found]:
            timed = {
                row["tokens"]: row
                for row in rows
                if row["kind"] == "run" and row["setting"] == setting and row["batch"] == 1
            }
            if timed:
                found[setting] = timed
    return found


def read_own_times(folder: str | Path) -> dict[str, Row]:
    """The timed rows of the model whose answers are shown, at the longest prompt.

    ``full`` is full attention by the fastest stock kernels.
    """
    rows = [row for row in results.load(Path(folder) / OWN).rows if row["kind"] == "run"]
    longest = max(row["tokens"] for row in rows)
    timed = {row["setting"]: row for row in rows if row["tokens"] == longest}
    return timed | {"full": timed["stock"]}


def answers_table(folder: str | Path) -> str:
    """Right answers of each recipe, and the time to the first token of the longest prompt."""
    answers, times = read_answers(folder), read_own_times(folder)
    heads = [f"{HEADS[task]}, {length:,}" for task, length in answers]
    rows_shown = []
    for name in RECIPES:
        cells = [f"{rows[name]['right']} of {rows[name]['samples']}" for rows in answers.values()]
        first, faster = times[name]["first_token_s"]["p50"], times[name]["first_token_speedup"]
        title = "full attention" if name == "full" else f"`{name}`"
        rows_shown.append([title, *cells, f"{first:.3f} s", f"{faster:.2f}x"])
    heads = ["recipe", *heads, f"first token, {times['full']['tokens']:,}", "faster"]
    return table(heads, rows_shown)


def times_table(folder: str | Path) -> str:
    """Time to first token, time per further token and KV at the longest prompt."""
    times = read_times(folder)
    heads = ("setting", "time to first token", "faster than stock", "per further token", "KV")
    rows = []
    for setting, title in SETTINGS.items():
        row = times[setting][LONGEST]
        first, token = row["first_token_s"]["p50"], row["per_token_s"]["p50"]
        faster, memory = row["first_token_speedup"], row["kv_bytes"] / 2**30
        cells = [f"{first:.2f} s", f"{faster:.2f}x", f"{1e3 * token:.2f} ms", f"{memory:.1f} GiB"]
        rows.append([title, *cells])
    return table(heads, rows)


def draw(folder: str | Path, path: str | Path) -> None:
    """Write the picture: a panel for each task, and one for times to first token."""
    figure = new_figure(13, 3.6, dpi=110)
    *panels, last = figure.subplots(1, len(TASKS) + 1)
    answers = read_answers(folder)
    for axis, (task, title) in zip(panels, TASKS.items(), strict=True):
        lengths = [length for name, length in answers if name == task]
        for recipe in RECIPES:
            shares = [100 * answers[task, length][recipe]["accuracy"] for length in lengths]
            axis.plot(lengths, shares, "o-", color=COLOURS[recipe], label=recipe)
        axis.set_ylim(0, 104)
        axis.set_xlim(0, 1.1 * max(lengths))
        axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axis.set_title(f"right answers in %:\n{title}", fontsize=10, loc="left")
    panels[0].legend(fontsize=8, loc="lower left")
    _draw_times(last, read_times(folder))
    for axis in (*panels, last):
        axis.set_xlabel("prompt tokens", fontsize=9)
        axis.grid(alpha=0.3)
    save_figure(figure, path, comment=fingerprint(folder))


def _draw_times(axis: Any, times: Mapping[str, Mapping[int, Row]]) -> None:
    for setting in [name for name in SETTINGS if name in COLOURS]:
        rows = times[setting]
        lengths = sorted(rows)
        seconds = [rows[length]["first_token_s"]["p50"] for length in lengths]
        name = "full, stock kernels" if setting == "stock" else setting
        axis.plot(lengths, seconds, "o-", color=COLOURS[setting], label=name)
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.set_xticks([32_768, 65_536, LONGEST], ["32,768", "65,536", f"{LONGEST:,}"])
    axis.set_title("seconds to the first token\n(Qwen3-4B's shape)", fontsize=10, loc="left")
    axis.legend(fontsize=8, loc="upper left")


def fingerprint(folder: str | Path) -> str:
    """Fingerprint of what is drawn; the picture's file carries it."""
    drawn = {
        "answers": [
            (key, [(name, rows[name]["accuracy"]) for name in RECIPES])
            for key, rows in read_answers(folder).items()
        ],
        "times": [
            (name, length, row["first_token_s"]["p50"])
            for name, rows in sorted(read_times(folder).items())
            for length, row in sorted(rows.items())
        ],
    }
    return hashlib.sha256(repr(drawn).encode()).hexdigest()[:16]


def fill(document: str, folder: str | Path) -> str:
    """A document with its tables written between ``<!-- answers -->`` and ``<!-- times -->``."""
    document = replace_between(document, "<!-- answers -->", answers_table(folder))
    return replace_between(document, "<!-- times -->", times_table(folder))


def main(
    folder: str = "results", document: str = "README.md", picture: str = "docs/overview.png"
) -> None:
    """Write the picture, and the tables of the document."""
    draw(folder, picture)
    path = Path(document)
    path.write_text(fill(path.read_text("utf-8"), folder), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
