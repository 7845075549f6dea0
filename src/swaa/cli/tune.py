"""`swaa tune`: find which layers stay full, test it on held-out samples, write the recipe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.cli.options import (
    OUTPUT,
    add_backend_option,
    add_config_options,
    add_flags,
    add_model_options,
    config_from,
    load_from,
    made_from,
    require_at_least,
    whole_numbers,
    words,
)
from swaa.cli.progress import ProgressBar
from swaa.cli.tune_tables import earlier, finish

if TYPE_CHECKING:
    from swaa.evaluation.tasks import Task

DEFAULT_RECIPE = "fast"
"""Where a search begins: the whole prompt slides, generated tokens see everything."""

DEFAULT_LENGTH = 4096
"""Tokens of prompts, for tasks that make prompts of a given length."""

_TRIES = ("window", "sink_tokens", "dense_tail")

_EPILOG = """\
Budgets are shares of full attention's: layers (full ones), decode (layers that keep every key),
flops (prefill), kv (bytes once the prompt is computed); several with commas. With decode or kv the
search says layer by layer where generated tokens see everything; without, that is the recipe's.
Methods: search; or the layers that one signal ranks first: answer_nll, answer_nll_out, kl, kl_out,
lazy_ratio, lazy_ratio_reversed, far_attention (the last three take one pass, the others one a
layer). With --unit heads, KV heads in place of layers: head_attention ranks them in one pass, and
search begins there and swaps; no layer is left full then. The same command resumes what was
interrupted; other budgets and --keep reuse what was measured.
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
        help="the recipe; the plot lies next to it (default: MODEL-tuned.json)",
    )
    add_flags(parser, "--results D=results  folder\n--json  print JSON (default: tables)")


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    add_flags(
        parser,
        """
        what is asked:
        --data D...  a .jsonl file of 'prompt' and, if known, 'answer' (default answer: the full
            model's own), a task of 'swaa eval' such as multikey or jsonl:FILE, or continuation
            (running text); repeatable (default: multikey, multiquery:2, variable_tracking and
            continuation)
        --report T,T  other tasks to report on (default: samples of --data that were held out)
        --length N  tokens of each prompt; longer lines of a file are left out (default: no limit;
            4096 for tasks of any length)
        --samples N  to tune on, of each kind of question (default: 32 of one, 8 of each of
            several)
        --held-out N  to report on, likewise (default: 50, 24 of each of several, all others of a
            file; 0: report nothing)
        --no-chat  no chat template (default: the tokenizer's, where it has one)
        --seed N=0  (default: %(default)s)
        """,
    )


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is looked for")
    add_flags(
        group,
        """
        --keep SHARE=0.95  of full attention's score that the recipe must keep on every task, 0 to 1
        --keep-mean  it is enough to keep it on the tasks' mean (default: on every task)
        --budget B...  such as layers=1/4 or kv=50%%,layers=0; repeatable (default: a ladder of
            budgets)
        --method M  see below (default: kl_out where budgets buy full layers alone, else search)
        --unit layers|heads|both=layers  what kv and decode buy: layers, KV heads, or each of both,
            for comparison
        --objective nll|kl  of the search: the answers' likelihood, or the distance from full
            attention's distributions (default: nll with answers to one kind of question, else kl)
        """,
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
        nargs="?",
        const="all",
        metavar="B,B",
        help="also report periodic patterns and the choice of each signal, or those named, such as"
        " odd,even,middle,kl_out (default: none)",
    )


def _add_local_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it runs")
    add_flags(group, "--batch-size N=1  (default: %(default)s)")
    add_backend_option(group)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Tune, print, write the recipe, and return the exit code."""
    # What needs no model is checked before minutes are spent on loading one.
    _check_numbers(args)
    base = config_from(args, default=DEFAULT_RECIPE)
    tries = _tries(args.tries)

    from swaa.evaluation.prompt import Prompt
    from swaa.selection.baselines import check_baselines
    from swaa.selection.budget import Budget
    from swaa.selection.calibration import require_counts
    from swaa.selection.tune import tune
    from swaa.selection.tuning import Tuning, check_budgets, check_method, default_method

    budgets = [Budget.parse(text) for text in args.budget or ()]
    method = args.method or default_method(budgets, tries=bool(tries), units=args.unit)
    check_method(method, args.unit)
    check_budgets(budgets, args.unit, args.held_out)
    baselines = words(args.baselines, "--baselines") if args.baselines else []
    check_baselines(baselines)
    # For other tasks that are reported on, any number will do.
    require_counts(args.samples, None if args.report else args.held_out)
    if args.out is not None:
        earlier(Path(args.out))
    tasks, continuation = _tasks(args.data)
    report = _reported(args.report)
    loaded = load_from(args)
    out = Path(args.out or f"{Path(loaded.name).name.lower()}-tuned.json")
    earlier(out)
    made = continuation or any(each.needs_length for each in (*tasks, *report))
    length = DEFAULT_LENGTH if args.length is None and made else args.length
    tuning = made_from(
        args,
        Tuning,
        tasks=tasks,
        continuation=continuation,
        prompt=Prompt(tokenizer=loaded.tokenizer, chat=False if args.no_chat else None),
        base=base,
        length=length,
        tries=tries,
        budgets=budgets,
        report_on=report,
        units=args.unit,
        method=method,
        baselines=baselines,
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
    return finish(args, loaded.name, tuning, tuned, out)


def _tasks(names: list[str] | None) -> tuple[list[Task], bool]:
    """The tasks to tune on, and whether running text is among them; default: the mixture."""
    from swaa.selection.continuation import NAME
    from swaa.selection.tuning import MIXTURE

    given = list(dict.fromkeys(names or [*MIXTURE, NAME]))
    return [_task(name) for name in given if name != NAME], NAME in given


def _task(name: str) -> Task:
    from swaa.cli.eval import check_columns
    from swaa.evaluation.tasks import find_tasks
    from swaa.evaluation.tasks.rows import FORMATS, DataFile
    from swaa.selection.own_prompts import OwnPrompts

    if name.endswith(FORMATS) and ":" not in name:
        return OwnPrompts(DataFile.find("swaa tune", name))
    tasks = find_tasks([name])
    check_columns(tasks)
    _refuse_judged(tasks)
    if len(tasks) > 1:
        raise ValueError(f"--data {name} names {len(tasks)} tasks; name one, such as ruler:vt")
    return tasks[0]


def _reported(names: str | None) -> list[Task]:
    from swaa.evaluation.tasks import find_tasks

    tasks = find_tasks(words(names, "--report")) if names else []
    _refuse_judged(tasks)
    return tasks


def _refuse_judged(tasks: list[Task]) -> None:
    for task in tasks:
        if task.needs_judge:
            raise ValueError(f"{task.name} needs a judge; tune on answers that words can check")


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
    require_at_least(args, 1, "length", "batch_size")
