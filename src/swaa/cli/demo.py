"""`swaa demo`: watch a model lose a fact under a plain sliding window and find it again."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.cli.options import OUTPUT, add_flags, add_model_options, load_from, made_from
from swaa.cli.progress import ProgressBar, format_seconds
from swaa.cli.table import format_table

if TYPE_CHECKING:
    from swaa.demo import DemoOptions, DemoOutcome
    from swaa.models import LoadedModel
    from swaa.results import Result

_FLAGS = """
--model MODEL=smollm2  folder, hub name, GGUF file, or smollm2
--needles N=4  documents per setting, one hidden fact in each
--needle-tokens N=1024  length of each document (tokens)
--prefill-tokens N=4096  length of the timed prompt (tokens)
--rounds N=3  times that every setting is timed, in turns
--window N=256  window of every sliding setting (keys)
--seed N=0  of the hidden facts
--json  print the result file, no table (default: a table)
"""


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="watch a small model lose a fact under a plain window and find it again",
        description="Hide facts in a novel, ask for them under several settings, and time a long"
        " prefill under each. Prints a table and writes it as JSON and PNG.",
    )
    add_flags(parser, _FLAGS)
    parser.add_argument(
        *OUTPUT,
        "--out",
        dest="out",
        default="swaa-demo",
        metavar="DIR",
        help="folder of the JSON and PNG (default: %(default)s)",
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo, print and save it, and return the exit code."""
    from swaa.demo import DemoOptions, run_demo
    from swaa.demo.chart import draw
    from swaa.pictures import require_matplotlib
    from swaa.results import save

    require_matplotlib()
    options = made_from(args, DemoOptions)
    loaded = load_from(args)
    if not args.json:
        _introduce(options, loaded)
    with ProgressBar(1, "demo") as bar:
        outcome = run_demo(loaded, options, on_step=bar.update)
    result = _result(loaded, options, outcome)
    path = save(result, samples=outcome.samples, folder=args.out)
    picture = path.with_suffix(".png")
    draw(outcome.rows, picture, title=_title(options, loaded))
    if args.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _print(outcome, path, picture)
    return 0


def _introduce(options: DemoOptions, loaded: LoadedModel) -> None:
    from swaa.demo import demo_settings

    print(
        f"{loaded.name}, {loaded.model.config.get_text_config().num_hidden_layers} layers, all of"
        f" them full attention, made to slide. In each of {options.needles} documents of"
        f" {options.needle_tokens:,} tokens one number is hidden; then a prompt of"
        f" {options.prefill_tokens:,} tokens is timed under all settings in turns,"
        f" {options.rounds} times.\n"
    )
    rows = [(name, config.describe()) for name, config in demo_settings(options.window).items()]
    print(format_table(("setting", "what it does"), rows), end="\n\n", flush=True)


def _print(outcome: DemoOutcome, path: Path, picture: Path) -> None:
    from swaa.demo import doubt

    rows = [
        (
            row.setting,
            f"{row.answered} of {row.needles}",
            f"{row.prefill_s:.1f}",
            f"{row.speedup:.2f}x",
            f"{row.speedup_low:.2f} to {row.speedup_high:.2f}",
            f"{row.kv_bytes / 2**20:.1f}",
        )
        for row in outcome.rows
    ]
    headers = ("setting", "answered", "prefill s", "vs full", "of rounds", "KV MiB")
    print(format_table(headers, rows))
    print("prefill s: the median; vs full: the ratio of medians, and of single rounds.")
    if (note := doubt(outcome.rows)) is not None:
        print(f"Careful: {note}.")
    print(f"\n{format_seconds(outcome.seconds)}; written: {path}, {picture}")


def _title(options: DemoOptions, loaded: LoadedModel) -> str:
    return (
        f"{loaded.name}: facts in {options.needle_tokens:,} tokens,"
        f" prefill of {options.prefill_tokens:,}, window {options.window}"
    )


def _result(loaded: LoadedModel, options: DemoOptions, outcome: DemoOutcome) -> Result:
    from swaa.demo import demo_settings
    from swaa.results import Result, record_provenance

    settings = {name: config.to_dict() for name, config in demo_settings(options.window).items()}
    # File names allow lower-case letters, digits and a few signs.
    name = re.sub(r"[^a-z0-9._-]+", "-", loaded.name.lower()).strip("-._")
    return Result(
        kind="demo",
        name=name,
        config={"model": loaded.name, **dataclasses.asdict(options), "settings": settings},
        rows=tuple(dataclasses.asdict(row) for row in outcome.rows),
        provenance=record_provenance(
            device=str(loaded.model.device),
            dtype=loaded.model.dtype,
            model=loaded.name,
            model_revision=loaded.revision,
            data="Jane Austen, Persuasion (1818), chapters 1 to 7",
            seed=options.seed,
            seconds=outcome.seconds,
            packages=("gguf",),
        ),
    )
