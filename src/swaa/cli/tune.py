"""`swaa tune`: find which layers stay full, prove it on samples held out, write the recipe."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.cli.options import (
    OUTPUT,
    add_backend_option,
    add_config_options,
    add_model_options,
    config_from,
    whole_numbers,
    words,
)
from swaa.cli.progress import ProgressBar, format_seconds
from swaa.cli.table import format_table
from swaa.config import SWAAConfig

if TYPE_CHECKING:
    from swaa.evaluation.tasks import Task
    from swaa.selection.report import Point
    from swaa.selection.tuning import Tuned, Tuning

DEFAULT_RECIPE = "fast"
"""Where a search begins: everything slides in the prompt, generated tokens see everything."""

DEFAULT_LENGTH = 4096
"""Tokens of prompts that are made to a length."""

_TRIES = ("window", "sink_tokens", "dense_tail")

_EPILOG = """\
Budgets are shares of full attention's: layers (full ones), decode (layers that keep every key),
flops (prefill), kv (bytes once the prompt is computed); several with commas. With decode or kv the
search says layer by layer where generated tokens see everything; without, that is the recipe's.
Methods: search; or the layers that one signal ranks first: answer_nll, answer_nll_out, kl, kl_out,
lazy_ratio, lazy_ratio_reversed. The same command resumes what was interrupted; other budgets and
--keep reuse what was measured.
"""


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "tune",
        help="find which layers stay full for a model, your prompts and a budget",
        description="Find which layers stay full: search on some of your prompts, report on others,"
        " write the cheapest recipe that keeps enough.",
        epilog=_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="folder, hub name, GGUF file, or smollm2")
    _add_data_options(parser)
    _add_search_options(parser)
    add_config_options(parser, default=DEFAULT_RECIPE)
    _add_local_options(parser)
    parser.add_argument(
        *OUTPUT,
        "--out",
        dest="out",
        metavar="FILE",
        help="the recipe; the plot lies beside it (default: MODEL-tuned.json)",
    )
    parser.add_argument(
        "--results", default="results", metavar="D", help="folder (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: tables)")


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is asked")
    group.add_argument(
        "--data",
        required=True,
        metavar="D",
        help="a .jsonl file of 'prompt' and, if known, 'answer' (default answer: the full model's"
        " own), or a task of 'swaa eval' such as multikey or jsonl:FILE",
    )
    group.add_argument(
        "--report",
        metavar="T,T",
        help="other tasks to report on (default: samples of --data that were held out)",
    )
    group.add_argument(
        "--length",
        type=int,
        metavar="N",
        help="tokens of each prompt; longer lines of a file are left out (default: no limit; 4096"
        " for tasks of any length)",
    )
    group.add_argument(
        "--samples", type=int, default=32, metavar="N", help="to tune on (default: %(default)s)"
    )
    group.add_argument(
        "--held-out",
        type=int,
        metavar="N",
        help="to report on (default: 50, or all others of a file)",
    )
    group.add_argument(
        "--no-chat",
        action="store_true",
        help="no chat template (default: the tokenizer's, where it has one)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is looked for")
    group.add_argument(
        "--keep",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="of full attention's score that the recipe must keep, 0 to 1 (default: %(default)s)",
    )
    group.add_argument(
        "--budget",
        action="append",
        metavar="B",
        help="such as layers=1/4 or kv=50%%,layers=0; repeatable (default: a ladder of budgets)",
    )
    group.add_argument(
        "--method", default="search", metavar="M", help="see below (default: %(default)s)"
    )
    group.add_argument(
        "--objective",
        choices=("nll", "kl"),
        help="of the search: the answers' likelihood, or the distance from full attention's"
        " distributions (default: nll with answers of yours, else kl)",
    )
    group.add_argument(
        "--try",
        dest="tries",
        action="append",
        default=[],
        metavar="KNOB=N,N",
        help="also search with these values of window, sink_tokens or dense_tail; repeatable"
        " (default: the recipe's values only)",
    )
    group.add_argument(
        "--baselines",
        action="store_true",
        help="also report periodic patterns and the choice of each signal (default: off)",
    )


def _add_local_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it runs")
    group.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="(default: %(default)s)"
    )
    add_backend_option(group)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Tune, print, write the recipe, and return the exit code."""
    # What needs no model is checked before a minute goes into loading one.
    _check_numbers(args)
    base = config_from(args, default=DEFAULT_RECIPE)
    tries = _tries(args.tries)

    from swaa.evaluation.prompt import Prompt
    from swaa.models import load_model
    from swaa.selection.budget import Budget
    from swaa.selection.calibration import require_counts
    from swaa.selection.tune import tune
    from swaa.selection.tuning import Tuning, check_method

    budgets = [Budget.parse(text) for text in args.budget or ()]
    check_method(args.method)
    # Of other tasks that are reported on, any number will do.
    require_counts(args.samples, None if args.report else args.held_out)
    if args.out is not None:
        _earlier(Path(args.out))
    task, report = _tasks(args)
    loaded = load_model(
        args.model,
        dtype=args.dtype,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
    )
    out = Path(args.out or f"{Path(loaded.name).name.lower()}-tuned.json")
    _earlier(out)
    made = any(each.needs_length for each in (task, *report))
    length = DEFAULT_LENGTH if args.length is None and made else args.length
    tuning = Tuning(
        task=task,
        prompt=Prompt(tokenizer=loaded.tokenizer, chat=False if args.no_chat else None),
        base=base,
        length=length,
        tries=tries,
        budgets=budgets,
        samples=args.samples,
        held_out=args.held_out,
        report_on=report,
        objective=args.objective,
        keep=args.keep,
        method=args.method,
        baselines=args.baselines,
        seed=args.seed,
        batch_size=args.batch_size,
        folder=args.results,
    )
    try:
        with ProgressBar(1, "tune") as bar:
            tuned = tune(
                loaded,
                args.model,
                tuning,
                backend=args.backend,
                progress=bar.update,
                say=lambda line: bar.say(f"swaa tune: {line}"),
            )
    except KeyboardInterrupt:
        print("swaa tune: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    for note in tuned.notes:
        print(f"swaa tune: {note}", file=sys.stderr)
    return _finish(args, loaded.name, tuning, tuned, out)


def _finish(args: argparse.Namespace, model: str, tuning: Tuning, tuned: Tuned, out: Path) -> int:
    """Show what was measured, then choose: where nothing keeps enough, the table still helps."""
    from swaa.selection.report import counts, doubt, recipe, write_recipe

    full = tuned.points[0]
    if (note := doubt(full)) is not None:
        print(f"swaa tune: {note}", file=sys.stderr)
    before = _earlier(out)
    try:
        if not args.json:
            _print_points(tuned)
        chosen = _choose(tuning, tuned)
    except ValueError as error:
        left = "" if before is None else f"; {out} is an earlier one and stays as it was"
        raise ValueError(f"{error}; no recipe was written{left}") from None
    content = recipe(
        chosen,
        full,
        name=out.stem,
        how=_how(tuning),
        provenance=tuned.provenance,
    )
    write_recipe(content, out)
    plot = _draw(tuned, chosen, out.with_suffix(".png"), model)
    use = f'swaa generate {args.model} --recipe {out} --file report.txt --question "..."'
    if args.json:
        print(json.dumps({"recipe": content, "file": str(out), "use": use, **_as_json(tuned)}))
        return 0
    print(f"\n{content['description']}\n{chosen.config.describe()}")
    for line in counts(chosen, full):
        print(f"held out, {line}")
    print(f"recipe: {out}" + (f", plot: {plot}" if plot else ""))
    if before not in (None, chosen.config):
        print(f"it replaces the one that was there: {before.describe()}")
    print(f"all that was measured: {tuned.path}")
    print(f"use it: {use}")
    return 0


def _earlier(out: Path) -> SWAAConfig | None:
    """The recipe that is there already, which this run may replace; other files it may not."""
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it, or name another")
    if not out.exists():
        return None
    try:
        return SWAAConfig.load(out)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{out} is there and is no recipe, so it will not be replaced: name another file by"
            f" --out ({error})"
        ) from None


def _choose(tuning: Tuning, tuned: Tuned) -> Point:
    from swaa.selection.report import choose

    full, *points = tuned.points
    return choose([point for point in points if point.source == tuning.method], full, tuning.keep)


def _how(tuning: Tuning) -> str:
    budgets = "; ".join(map(str, tuning.budgets)) or "a ladder"
    return (
        f"swaa tune, method {tuning.method}, {tuning.samples} samples of {tuning.task.name},"
        f" budget {budgets}, at least {tuning.keep:.0%} kept, seed {tuning.seed}; scores are of"
        " samples that the search has not seen"
    )


def _print_points(tuned: Tuned) -> None:
    from swaa.selection.report import kept, pareto

    full = tuned.points[0]
    front = {point.name for point in pareto(tuned.points)}
    rows = [
        (
            " = ".join([point.name, *point.also]),
            "*" if point.name in front else "",
            _count(point, tuned),
            f"{100 * point.cost.flops:.0f}",
            f"{100 * point.cost.kv:.0f}",
            f"{point.nll:.3f}",
            f"{point.kl:.3f}",
            *(f"{100 * sum(s) / len(s):.1f}" for s in point.scores.values()),
            f"{100 * kept(point, full):.0f}",
        )
        for point in sorted(tuned.points, key=lambda point: (-point.spent, -point.score))
    ]
    headers = ("recipe", "Pareto", "full", "FLOPs %", "KV %", "nll", "kl")
    print(format_table((*headers, *(f"{task} %" for task in full.scores), "kept %"), rows))
    print("* no other is as good and as cheap. nll and kl: on the samples tuned on; the rest: held")
    stages = ", ".join(f"{name} {format_seconds(s)}" for name, s in tuned.seconds.items())
    print(f"out, {len(next(iter(full.scores.values())))} of a task. Time: {stages}.")


def _count(point: Point, tuned: Tuned) -> str:
    return f"{round(100 * point.cost.layers)} %" if point is not tuned.points[0] else "all"


def _as_json(tuned: Tuned) -> dict[str, Any]:
    from swaa.selection.report import rows

    return {
        "rows": rows(tuned.points, tuned.points[0]),
        "seconds": tuned.seconds,
        "provenance": dataclasses.asdict(tuned.provenance),
    }


def _draw(tuned: Tuned, chosen: Point, path: Path, model: str) -> Path | None:
    if importlib.util.find_spec("matplotlib") is None:
        from swaa.extras import install_line

        print(f"swaa tune: no plot: {install_line('plot')}", file=sys.stderr)
        return None
    from swaa.selection.plot import draw

    draw(tuned.points, chosen, path, title=f"{model}: what recipes keep, and what they cost")
    return path


def _tasks(args: argparse.Namespace) -> tuple[Task, list[Task]]:
    from swaa.cli.eval import check_columns
    from swaa.evaluation.tasks import find_tasks
    from swaa.evaluation.tasks.rows import FORMATS, DataFile
    from swaa.selection.own_prompts import OwnPrompts

    if args.data.endswith(FORMATS) and ":" not in args.data:
        tasks: list[Task] = [OwnPrompts(DataFile.find("swaa tune", args.data))]
    else:
        tasks = find_tasks([args.data])
        check_columns(tasks)
    report = find_tasks(words(args.report, "--report")) if args.report else []
    for task in (*tasks, *report):
        if task.needs_judge:
            raise ValueError(f"{task.name} needs a judge; tune on answers that words can check")
    if len(tasks) > 1:
        raise ValueError(f"--data {args.data} names {len(tasks)} tasks; name one, such as ruler:vt")
    return tasks[0], report


def _tries(texts: list[str]) -> dict[str, list[int]]:
    tries: dict[str, list[int]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in _TRIES or not values:
            raise ValueError(
                f"--try {text}: expected one of {', '.join(_TRIES)} and whole numbers, such as"
                " window=512,1024"
            )
        least = 1 if name == "window" else 0
        tries.setdefault(name, []).extend(whole_numbers(values, f"--try {name}", least=least))
    return tries


def _check_numbers(args: argparse.Namespace) -> None:
    if not 0 < args.keep <= 1:
        raise ValueError(
            f"--keep {args.keep}: expected a share above 0 and at most 1, such as 0.95"
        )
    for name in ("length", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least 1")
