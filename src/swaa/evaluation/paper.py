"""The paper's accuracy tables: its numbers, the runs that repeat them, and their results."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa import results
from swaa.config import SWAAConfig
from swaa.evaluation import gathered
from swaa.statistics import Interval

TABLES = (1, 3, 4)
"""Tables with accuracies of models."""

TASKS = ("longmemeval", "longbench_v2", "ruler:niah_multiquery")
"""The task for each column of a table."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of one of the paper's tables.

    Attributes:
        config: its setting.
        trained: whether the model was trained under it.
        accuracy: in per cent, for each of :data:`TASKS`; ``None``: the paper has none.
    """

    config: SWAAConfig
    trained: bool
    accuracy: tuple[float | None, ...]

    @property
    def name(self) -> str:
        """The setting's name, for files.

        >>> config = SWAAConfig(window=2000, sink_tokens=10, full_layers="odd", full_decode=True)
        >>> Row(config=config, trained=False, accuracy=()).name
        '2000-10-sinks-odd-full-decode'
        """
        config = self.config
        if config.window is None:
            return "full"
        words = [
            str(config.window),
            *([f"{config.sink_tokens}-sinks"] if config.sink_tokens else []),
            *([re.sub(r"\W+", "-", str(config.full_layers))] if config.full_layers else []),
            *(["full-decode"] if config.full_decode else []),
        ]
        return "-".join(words)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One of the paper's tables, for one kind of model.

    Attributes:
        number: in the paper.
        source: title, number and version.
        notes: how its numbers were made, one sentence or two each.
        model: the model that the table is about.
        thinking: whether that model thinks first.
        columns: benchmarks, one for each of :data:`TASKS`.
        ruler_tokens: length of RULER's prompts.
        rows: in the paper's order.
    """

    number: int
    source: str
    notes: tuple[str, ...]
    model: str
    thinking: bool
    columns: tuple[str, ...]
    ruler_tokens: int
    rows: tuple[Row, ...]

    @property
    def untrained(self) -> tuple[Row, ...]:
        """The rows that need no training."""
        return tuple(row for row in self.rows if not row.trained)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of one of our runs.

    Attributes:
        right: samples answered rightly.
        samples: all of them.
        interval: 95 % confidence interval of the share.
        created: time of the result.
        file: name of the result file.
    """

    right: int
    samples: int
    interval: Interval
    created: str
    file: str


def read_table(number: int, *, thinking: bool) -> Table:
    """One of the paper's tables.

    Args:
        number: one of :data:`TABLES`.
        thinking: whether to read the columns of the model that thinks first.

    Raises:
        ValueError: for another number, or columns that the table does not have.
    """
    if number not in TABLES:
        raise ValueError(f"the paper's table {number} has no accuracies; give one of 1, 3 and 4")
    everything = _read()
    table, kind = everything["tables"][str(number)], "thinking" if thinking else "instruct"
    if kind not in table["models"]:
        raise ValueError(
            f"the paper's table {number} is of {table['models']['instruct']}, which does not think"
            " first; leave --thinking out"
        )
    return Table(
        number=number,
        source=everything["source"],
        notes=tuple(everything["notes"]),
        model=table["models"][kind],
        thinking=thinking,
        columns=tuple(everything["columns"]),
        ruler_tokens=table["ruler_tokens"],
        rows=tuple(
            Row(
                config=SWAAConfig(
                    window=row["window"],
                    sink_tokens=row["sink_tokens"],
                    full_layers=row["full_layers"],
                    full_decode=row["full_decode"],
                ),
                trained=row["trained"],
                accuracy=tuple(row[kind]),
            )
            for row in table["rows"]
        ),
    )


def write_runs(table: Table, model: str, folder: Path, *, results_folder: str) -> Path:
    """Write the runs of the rows that need no training: settings, and a script of commands.

    Args:
        table: the table to repeat.
        model: as typed.
        folder: of the script and the settings; created if missing.
        results_folder: that the runs write to.

    Returns:
        The script.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for row in table.untrained:
        if row.config.window is not None:
            row.config.save(folder / f"{row.name}.json")
    path = folder / "runs.sh"
    path.write_text("\n".join(_script(table, model, results_folder)) + "\n", encoding="utf-8")
    readers = path.stat().st_mode & 0o444  # readable for those that the umask allows
    path.chmod(path.stat().st_mode | readers >> 2)
    return path


def find_runs(table: Table, model: str, *, folder: str | Path) -> dict[tuple[str, str], Found]:
    """What is measured already, by row's name and task.

    Of several results for one cell, the one with the most samples counts, then the newest.
    """
    rows = {_key(row.config): row.name for row in table.untrained}
    found: dict[tuple[str, str], Found] = {}
    for config, row, result, file in _measured(folder):
        task = result.config["task"]["task"]
        if (
            result.config["model"] != Path(model).name
            or result.config["prompt"]["thinking"] != table.thinking
            or task not in TASKS
            or _key(config) not in rows
        ):
            continue
        one = Found(
            right=row["right"],
            samples=row["samples"],
            interval=Interval(row["low"], row["high"]),
            created=result.provenance.created,
            file=file,
        )
        place = (rows[_key(config)], task)
        if place not in found or _rank(one) > _rank(found[place]):
            found[place] = one
    return found


def _measured(
    folder: str | Path,
) -> Iterator[tuple[SWAAConfig, Mapping[str, Any], results.Result, str]]:
    """Every setting in a folder with its row of all samples."""
    for path in sorted((Path(folder) / gathered.KIND).glob("*.json")):
        result = results.load(path)
        settings = result.config.get("settings", {None: result.config.get("swaa")})
        for name, config in settings.items():
            row = next(
                (
                    row
                    for row in result.rows
                    if row.get("place") == "all" and row.get("setting") == name
                ),
                None,
            )
            if row is not None:
                yield SWAAConfig.from_dict(config), row, result, path.name


def _script(table: Table, model: str, results_folder: str) -> Iterator[str]:
    settings = [
        "full" if row.config.window is None else f"$here/{row.name}.json" for row in table.untrained
    ]
    flags = " --thinking" if table.thinking else ""
    yield "#!/usr/bin/env bash"
    yield f"# Table {table.number} of {table.source}: {table.model}, rows without training."
    yield "# LONGMEMEVAL and LONGBENCH_V2 name the benchmarks' files; without one, its column is"
    yield "# left out. JUDGE_ENDPOINT and JUDGE_MODEL name the judge of LongMemEval's answers."
    yield "# Flags are passed on (runs.sh --batch-size 8); started again, it goes on where it was."
    yield "set -eu"
    yield 'here=$(dirname "$0")'
    yield f'recipes="{",".join(settings)}"'
    yield f'run() {{ swaa eval {shlex.quote(model)} --recipes "$recipes"{flags} --results' + (
        f' {shlex.quote(results_folder)} "$@"; }}'
    )
    yield 'if [ -n "${LONGMEMEVAL:-}" ]; then'
    yield (
        '  run --tasks "longmemeval:10:$LONGMEMEVAL" --lengths none --judge-endpoint'
        ' "$JUDGE_ENDPOINT" --judge-model "$JUDGE_MODEL" "$@"'
    )
    yield "fi"
    yield 'if [ -n "${LONGBENCH_V2:-}" ]; then'
    yield '  run --tasks "longbench_v2:$LONGBENCH_V2" --lengths 128000 "$@"'
    yield "fi"
    yield f'run --tasks {TASKS[2]} --lengths {table.ruler_tokens} --samples 500 "$@"'
    yield f"swaa eval {shlex.quote(model)} --paper-table {table.number}{flags} --results" + (
        f" {shlex.quote(results_folder)}"
    )


def _key(config: SWAAConfig) -> str:
    return json.dumps(config.to_dict(), sort_keys=True)


def _rank(found: Found) -> tuple[int, str]:
    return found.samples, found.created


@functools.cache
def _read() -> Mapping[str, Any]:
    file = importlib.resources.files("swaa.evaluation").joinpath("paper.json")
    return json.loads(file.read_text("utf-8"))
