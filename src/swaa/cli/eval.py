"""`swaa eval`: measure recipes on tasks, side by side, on the same samples."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swaa.cli.endpoints import add_endpoint_options, judge_from
from swaa.cli.eval_source import check_processes, follow, open_source
from swaa.cli.options import (
    add_backend_option,
    add_config_options,
    add_flags,
    add_model_options,
    add_results_option,
    require_at_least,
    settings_from,
    whole_numbers,
    words,
)
from swaa.config import SWAAConfig

if TYPE_CHECKING:
    from swaa.evaluation.judge import Judge
    from swaa.evaluation.tasks import Task

DEFAULT_RECIPES = "full,selected"
DEFAULT_TASKS = "needle,multikey"
DEFAULT_LENGTHS = "4096"

_EPILOG = """\
Tasks: needle, multikey[:others], multiquery[:N], multivalue[:N], variable_tracking[:hops], recall,
perplexity, jsonl:FILE, longmemeval[:sessions]:FILE, longbench_v2:FILE, ruler[:task]. Run the
same command again to resume an interrupted run; finished runs are skipped. Each run is one .json
with its provenance in RESULTS/eval/, its samples are in the .jsonl next to it. On several GPUs,
each with a copy of the model: accelerate launch --multi_gpu --num_processes 8 -m swaa eval ...
"""

_TASK_FLAGS = f"""
--recipes R,R  recipes to compare; 'full' is the model as it is (default: --recipe's, or
    {DEFAULT_RECIPES})
what is asked:
--tasks T,T={DEFAULT_TASKS}  see below
--lengths N,N={DEFAULT_LENGTHS}  tokens of each prompt, template and question included; tasks that
    read a file leave longer ones out; none: no limit
--samples N  of each task and length (default: 50, or all that a file has)
--seed N=0  (default: %(default)s)
"""
_PROMPT_FLAGS = """
how it is put:
--thinking  the model thinks first: up to 10,000 tokens, the answer is what follows </think>
--cot  ask to think step by step
--no-chat  no chat template (default: the tokenizer's, where it has one)
--no-answer-prefix  do not begin the answer with the task's words (default: begin it)
"""
_LOCAL_FLAGS = """
--batch-size N=1  prompts answered at once, sorted by length
--chunk N  prompt tokens per forward pass (default: the whole prompt)
--device-map M  spread one model over all GPUs, as Transformers does: auto, balanced,
    balanced_low_0 or sequential (default: one device)
"""
_RESULT_FLAGS = """
--gather  when all is done, put the runs that differ in their recipe alone into one pair of files
    (default: a pair for each run)
--paper-table N  run nothing: show the paper's table 1, 3 or 4 (with --thinking, the columns of the
    model that thinks) next to what RESULTS holds for MODEL, and write the list of runs that repeat
    its rows without training to paper-table-N-MODEL/ (default: off)
--json  print JSON (default: tables)
"""


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "eval",
        help="measure recipes on tasks, with confidence intervals",
        description="Measure recipes on tasks, side by side and on the same samples: accuracy with"
        " 95 % Wilson intervals, what is kept of full attention's, McNemar's p against it, and"
        " where the needle lay.",
        epilog=_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="folder, hub name, GGUF file, or smollm2")
    add_flags(parser, _TASK_FLAGS)
    add_config_options(parser, default=None)
    add_flags(parser, _PROMPT_FLAGS)
    group = parser.add_argument_group("a model loaded here")
    add_flags(group, _LOCAL_FLAGS)
    add_backend_option(group)
    add_model_options(parser)
    add_endpoint_options(parser, note="; --recipes then names the recipe it runs")
    add_results_option(parser)
    add_flags(parser, _RESULT_FLAGS)
    names = list(vars(parser.parse_args(["MODEL"])))
    parser.set_defaults(defaults={name: parser.get_default(name) for name in names})


def run(args: argparse.Namespace) -> int:
    """Do the runs that are not done yet, and print all results."""
    from swaa.processes import is_first

    if not is_first():
        return follow(args)
    if args.paper_table is not None:
        from swaa.cli.eval_paper import run as show_paper

        return show_paper(args)
    check_processes(args)
    # What needs no model is checked before minutes are spent on loading one.
    settings = _settings(args)
    none = args.lengths == "none"
    lengths = (None,) if none else whole_numbers(args.lengths, "--lengths")
    require_at_least(args, 1, "samples", "batch_size", "chunk")

    from swaa.evaluation.tasks import find_tasks

    tasks = find_tasks(words(args.tasks, "--tasks"))
    check_columns(tasks)
    judge = _judge(args, tasks)

    from swaa.cli.eval_tables import print_tables, to_json
    from swaa.cli.progress import ProgressBar
    from swaa.evaluation.comparison import Comparison
    from swaa.evaluation.run import find, gather

    with open_source(args, settings) as (source, prompt):
        comparison = Comparison(
            settings=settings,
            tasks=tasks,
            lengths=lengths,
            prompt=prompt,
            count=args.samples,
            seed=args.seed,
            folder=args.results,
            batch_size=args.batch_size,
            judge=judge,
        )
        with ProgressBar(1.0, "making prompts") as bar:
            outcomes = comparison.execute(source, progress=bar.update)
    if args.gather:
        gather(outcomes, folder=args.results)
        outcomes = [find(outcome.run, folder=args.results) or outcome for outcome in outcomes]
    if args.json:
        print(json.dumps(to_json(outcomes), indent=2))
    else:
        print_tables(outcomes)
    return 0


def _settings(args: argparse.Namespace) -> list[tuple[str, SWAAConfig]]:
    """Name and configuration of each recipe; the knobs change all but full attention."""
    from swaa.evaluation.gathered import require_different_names

    settings = settings_from(args, args.recipes or args.recipe or DEFAULT_RECIPES)
    if args.gather:
        require_different_names([name for name, _ in settings])
    return settings


def check_columns(tasks: Sequence[Task]) -> None:
    """Refuse a file of whole prompts where questions are expected, before a model is loaded.

    Raises:
        ValueError: naming file, line, and the columns expected.
    """
    from swaa.evaluation.tasks.jsonl import OwnQuestions

    for task in tasks:
        row = next(task.file.rows(), None) if isinstance(task, OwnQuestions) else None
        if row is not None and "context" not in row.values:
            there = ", ".join(map(str, row.values)) or "none"
            whole = "; whole prompts are read by 'swaa tune --data FILE'"
            raise row.error(
                "there is no column 'context'; expected 'context', 'question' and 'answers'; the"
                f" columns are {there}{whole if 'prompt' in row.values else ''}"
            )


def _judge(args: argparse.Namespace, tasks: list[Task]) -> Judge | None:
    free = [task.name for task in tasks if task.needs_judge]
    if not free:
        if args.judge_endpoint or args.judge_model:
            raise ValueError(
                "a judge would do nothing: the answers to these tasks are checked by their words;"
                " leave --judge-endpoint and --judge-model out"
            )
        return None
    if not args.judge_endpoint or not args.judge_model:
        raise ValueError(
            f"{free[0]} has free answers that only a judge can score; give --judge-endpoint and"
            " --judge-model"
        )
    return judge_from(args)
