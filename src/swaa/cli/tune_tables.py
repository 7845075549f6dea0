"""What `swaa tune` prints and writes: tables, counts, losses, the recipe and its plot."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.cli.progress import format_seconds
from swaa.cli.table import format_table
from swaa.config import SWAAConfig

if TYPE_CHECKING:
    from swaa.selection.report import Point, Role
    from swaa.selection.tuning import Tuned, Tuning


_UNITS = {"layers": "", "heads": "KV heads, ", "both": "layers and KV heads, "}


def finish(args: argparse.Namespace, model: str, tuning: Tuning, tuned: Tuned, out: Path) -> int:
    """Show the measurements, then the choice: if nothing keeps enough, the table still helps.

    Raises:
        ValueError: when no recipe keeps enough.
    """
    from swaa.selection.report import doubt, recipe, write_recipe

    full = tuned.points[0]
    if full.scores and (note := doubt(full)) is not None:
        print(f"swaa tune: {note}", file=sys.stderr)
    before = earlier(out)
    if not args.json:
        _print_points(tuned)
    chosen = tuned.chosen
    if chosen is None:
        left = "" if before is None else f"; {out} is an earlier one and stays as it was"
        raise ValueError(f"{tuned.unmet}; no recipe was written{left}")
    content = recipe(
        chosen,
        full,
        name=out.stem,
        how=_how(tuning),
        provenance=tuned.provenance,
    )
    write_recipe(content, out)
    plot = _draw(tuned, chosen, out.with_suffix(".png"), model) if full.scores else None
    use = f'swaa generate {args.model} --recipe {out} --file report.txt --question "..."'
    if args.json:
        print(json.dumps({"recipe": content, "file": str(out), "use": use, **_as_json(tuned)}))
        return 0
    print(f"\n{content['description']}\n{chosen.config.describe()}")
    _print_counts(tuned, chosen)
    print(f"recipe: {out}" + (f", plot: {plot}" if plot else ""))
    if before not in (None, chosen.config):
        print(f"it replaces the one that was there: {before.describe()}")
    print(f"all that was measured: {tuned.path}")
    print(f"use it: {use}")
    _print_lost(tuning, tuned, chosen)
    return 0


def earlier(out: Path) -> SWAAConfig | None:
    """The recipe that is already in the file, which this run may replace; other files it may not.

    Raises:
        ValueError: when the file is there and is not a recipe, or its folder is missing.
    """
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it, or name another")
    if not out.exists():
        return None
    try:
        return SWAAConfig.load(out)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{out} exists and is not a recipe, so it will not be replaced: name another file by"
            f" --out ({error})"
        ) from None


def _how(tuning: Tuning) -> str:
    budgets = "; ".join(map(str, tuning.budgets)) or "a ladder"
    several = len(tuning.kinds) > 1
    of = f"{'each of ' if several else ''}{', '.join(tuning.kinds)}"
    each = " (mean of all)" if tuning.keep_mean else " of each" if several else ""
    how = (
        f"swaa tune, {_UNITS[tuning.units]}method {tuning.method}, {tuning.each} samples of {of},"
        f" budget {budgets}"
    )
    if not tuning.held_out_of_each:
        return f"{how}, seed {tuning.seed}; nothing was held out, so no score says what it keeps"
    return (
        f"{how}, at least {tuning.keep:.0%} kept{each}, seed {tuning.seed}; scores are of samples"
        " that the search has not seen"
    )


def _print_points(tuned: Tuned) -> None:
    from swaa.selection.report import kept_by_task, pareto

    full = tuned.points[0]
    if not full.scores:
        _print_unverified(tuned)
        return
    front = {point.name for point in pareto(tuned.points)}
    rows = [
        (
            _name(point),
            "*" if point.name in front else "",
            "all" if point is full else f"{round(100 * point.cost.layers)} %",
            *_costs(point),
            *(f"{100 * sum(s) / len(s):.1f}" for s in point.scores.values()),
            _worst(list(kept_by_task(point, full).values())),
        )
        for point in sorted(tuned.points, key=lambda point: (-point.spent, -point.score))
    ]
    headers = ("recipe", "Pareto", "full", "FLOPs %", "KV %", "nll", "kl")
    kept = "kept %" if len(full.scores) == 1 else "least kept %"
    print(format_table((*headers, *(f"{task} %" for task in full.scores), kept), rows))
    print("* no other is as good and as cheap. nll and kl: on the samples tuned on; the rest: held")
    print(f"out, {len(next(iter(full.scores.values())))} of a task. Time: {_stages(tuned)}.")


def _print_unverified(tuned: Tuned) -> None:
    points = sorted(tuned.points, key=lambda point: (-point.spent, point.kl))
    rows = [(_name(point), *_costs(point)) for point in points]
    print(format_table(("recipe", "FLOPs %", "KV %", "nll", "kl"), rows))
    print(f"nll and kl: on the samples tuned on; none was held out. Time: {_stages(tuned)}.")


def _name(point: Point) -> str:
    return " = ".join([point.name, *point.also])


def _costs(point: Point) -> tuple[str, ...]:
    shares = (f"{100 * share:.0f}" for share in (point.cost.flops, point.cost.kv))
    return (*shares, f"{point.nll:.3f}", f"{point.kl:.3f}")


def _stages(tuned: Tuned) -> str:
    return ", ".join(f"{name} {format_seconds(s)}" for name, s in tuned.seconds.items())


def _worst(shares: list[float]) -> str:
    return f"{100 * min(shares):.0f}" if shares else "-"


def _print_counts(tuned: Tuned, chosen: Point) -> None:
    from swaa.selection.report import counts

    for role, label in _labels(tuned).items():
        for line in counts(chosen, tuned.points[0], role):
            print(f"{label}{line}")


def _labels(tuned: Tuned) -> dict[Role, str]:
    labels: dict[Role, str] = {
        "held out": "held out",
        "longer": "held out",
        "other": "not tuned on",
    }
    return {
        role: f"{labels[role]}{'' if role == 'held out' else f', {length:,} tokens'}, "
        for role, length in tuned.lengths.items()
    }


def _print_lost(tuning: Tuning, tuned: Tuned, chosen: Point) -> None:
    """The last line: what the recipe loses on questions that it was not tuned on."""
    from swaa.selection.report import kept_by_task, lost

    full = tuned.points[0]
    if not chosen.others:
        return
    shares = kept_by_task(chosen, full, "other").values()
    bad = any(share < tuning.keep for share in shares)
    said = f"on questions that were not tuned on: {lost(chosen, full)}"
    remedy = "leave out --data, or give several, to tune on them too"
    print(f"LOST {said} ({remedy})" if bad else said)


def _as_json(tuned: Tuned) -> dict[str, Any]:
    from swaa.selection.report import rows

    return {
        "rows": rows(tuned.points, tuned.points[0], tuned.lengths),
        "seconds": tuned.seconds,
        "notes": list(tuned.notes),
        "provenance": dataclasses.asdict(tuned.provenance),
    }


def _draw(tuned: Tuned, chosen: Point, path: Path, model: str) -> Path | None:
    from swaa.pictures import can_draw

    if not can_draw():
        from swaa.extras import install_line

        print(f"swaa tune: no plot: {install_line('plot')}", file=sys.stderr)
        return None
    from swaa.selection.plot import draw

    draw(tuned.points, chosen, path, title=f"{model}: what recipes keep, and what they cost")
    return path
