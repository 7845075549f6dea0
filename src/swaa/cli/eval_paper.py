"""`swaa eval --paper-table`: the paper's numbers next to the results of our runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.cli.options import flag_of
from swaa.cli.table import Cell, format_table

if TYPE_CHECKING:
    from swaa.evaluation.paper import Found, Row, Table

_MEANT = ("paper_table", "model", "thinking", "results", "json", "verb", "traceback", "defaults")


def run(args: argparse.Namespace) -> int:
    """Write the list of runs, and print the results so far next to the paper's numbers."""
    from swaa.evaluation.paper import find_runs, read_table, write_runs

    for name, default in args.defaults.items():
        if name not in _MEANT and getattr(args, name) != default:
            raise ValueError(
                f"{flag_of(name)} does nothing with --paper-table, which runs nothing; pass it to"
                " the list of runs that this writes"
            )
    table = read_table(args.paper_table, thinking=args.thinking)
    folder = Path(f"paper-table-{table.number}-{Path(args.model).name.lower()}")
    script = write_runs(table, args.model, folder, results_folder=args.results)
    found = find_runs(table, args.model, folder=args.results)
    if args.json:
        print(json.dumps(_to_json(table, found, script), indent=2))
    else:
        _print(table, found, args.model)
        print(f"runs: {script}")
    return 0


def _print(table: Table, found: Mapping[tuple[str, str], Found], model: str) -> None:
    from swaa.evaluation.paper import TASKS

    print(f"Table {table.number} of {table.source}: {table.model}, right %;")
    print(f"here: {Path(model).name}, with its 95 % interval and samples.\n")
    short = [column.partition(",")[0] for column in table.columns]
    headers = ["setting", "trained", *(h for name in short for h in (name, "here"))]
    rows: list[list[Cell]] = []
    for row in table.rows:
        cells: list[Cell] = [row.config.describe(), "yes" if row.trained else "no"]
        for task, accuracy in zip(TASKS, row.accuracy, strict=True):
            cells += [accuracy, _cell(_here(found, row, task))]
        rows.append(cells)
    print(format_table(headers, rows))
    print()
    for note in table.notes:
        print(note)


def _here(found: Mapping[tuple[str, str], Found], row: Row, task: str) -> Found | None:
    # Our runs are of the model without training.
    return None if row.trained else found.get((row.name, task))


def _cell(found: Found | None) -> str:
    if found is None:
        return ""
    low, high = (100 * bound for bound in found.interval)
    share = 100 * found.right / found.samples
    return f"{share:.1f} ({low:.1f} to {high:.1f}, {found.samples})"


def _to_json(table: Table, found: Mapping[tuple[str, str], Found], script: Path) -> dict[str, Any]:
    from swaa.evaluation.paper import TASKS

    rows = []
    for row in table.rows:
        here = {task: _here(found, row, task) for task in TASKS}
        rows.append(
            {
                "setting": row.name,
                "config": row.config.to_dict(),
                "trained": row.trained,
                "paper": dict(zip(TASKS, row.accuracy, strict=True)),
                "here": {
                    task: one
                    and {
                        "accuracy": 100 * one.right / one.samples,
                        "low": 100 * one.interval.low,
                        "high": 100 * one.interval.high,
                        "samples": one.samples,
                        "file": one.file,
                    }
                    for task, one in here.items()
                },
            }
        )
    return {"source": table.source, "model": table.model, "runs": str(script), "rows": rows}
