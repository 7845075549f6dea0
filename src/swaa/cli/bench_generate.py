"""`swaa bench generate`: time a prompt and an answer, against the same model's stock attention."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from swaa.cli.options import (
    add_flags,
    add_measured_options,
    config_from,
    made_from,
    refuse_twice,
    require_at_least,
    tables_aside,
    whole_numbers,
)
from swaa.cli.table import format_table
from swaa.config import SWAAConfig

if TYPE_CHECKING:
    from pathlib import Path

    from swaa.benchmark.generate.options import Options
    from swaa.results import Result

_FLAGS = """
--recipes R=full,fast,balanced  names or files, with commas; knobs may follow a name: 'fast
    full_decode=none window=512' or 'fast full_layers=1,3,5'; a number after a comma belongs to
    the list before it
--lengths N,N=8192,16384,32768,65536,131072  tokens of each prompt
--batches N,N=1  sequences at once
--new-tokens N=128  tokens of each answer
--chunk N=8192  prompt tokens of a forward pass
--repeats N=5  most timings of the first token at each size
--time-limit N  seconds after which no new row is started; run the same command again to measure
    the missing rows (default: none)
--dtype T=bfloat16  bfloat16, float16 or float32
--no-compile  run the layers as Transformers has them (default: through torch.compile, every row)
"""


def register(subparsers: Any) -> None:
    """Add the sub-verb to ``swaa bench``."""
    parser = subparsers.add_parser(
        "generate",
        help="time to first token, time per token and memory, end to end",
        description="Time a prompt and an answer under each recipe, next to the same model with the"
        " best stock attention that runs here and to the limit set by attention alone.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="qwen3-4b, llama-3.1-8b, qwen3-30b-a3b or tiny (that shape, random weights), or a"
        " folder, hub name or GGUF file",
    )
    add_flags(parser, _FLAGS)
    add_measured_options(parser)
    parser.set_defaults(bench=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print and keep the results."""
    with tables_aside(args):
        result = _measure(args)
    if args.json:
        print(json.dumps(result.to_dict()))
    return 0


def _measure(args: argparse.Namespace) -> Result:
    options = _options(args)

    from swaa import results
    from swaa.benchmark.generate.measure import measure
    from swaa.benchmark.generate.options import seen_whole
    from swaa.benchmark.unfinished import not_begun

    name, config = options.file_name(), options.config()
    path = results.result_path("generate", name, config, folder=args.results)
    found = results.find("generate", name, config, folder=args.results)
    finished = found is not None and not not_begun(found.rows)
    if (note := seen_whole(options)) is not None:
        _say(note)
    if found is not None and finished and not args.again:
        result = found
        print(f"measured on {result.provenance.created[:10]}; use --again to measure again")
    else:

        def keep(result: Result) -> None:
            # A finished result is only replaced by another finished one.
            if not (finished and not_begun(result.rows)):
                results.save(result, folder=args.results)

        result = measure(
            options,
            report=functools.partial(print, flush=True),
            progress=_say,
            unfinished=None if args.again else found,
            keep=keep,
        )
    _print(result)
    left = not_begun(result.rows)
    if left and finished:
        print(f"not saved: {left} rows were not measured, and {path} holds a finished run")
    else:
        _plot(result, path)
        rest = f"; {left} rows are missing, run the same command again" if left else ""
        print(f"kept in {path}{rest}")
    return result


def _say(line: str) -> None:
    print(f"swaa bench generate: {line}", file=sys.stderr, flush=True)


def _plot(result: Result, path: Path) -> None:
    from swaa.benchmark.generate.plot import plot_generate

    try:
        title = f"{result.provenance.model}, {result.provenance.device}"
        plot_generate(result.rows, path.with_suffix(".png"), title=title)
    except (ImportError, ValueError) as error:  # the numbers are kept all the same
        print(f"no plot: {error}")


def _print(result: Result) -> None:
    from swaa.benchmark.generate.table import tables

    for table in tables(result.rows):
        print(f"\n{table.title}\n\n{format_table(table.headers, table.cells)}")
    print()


def _options(args: argparse.Namespace) -> Options:
    from swaa.benchmark.generate.options import Options

    require_at_least(args, 1, "new_tokens", "chunk", "repeats", "time_limit")
    return made_from(
        args,
        Options,
        recipes={spec: _config(spec) for spec in _specs(args.recipes)},
        lengths=whole_numbers(args.lengths, "--lengths"),
        batches=whole_numbers(args.batches, "--batches"),
        compiled=not args.no_compile,
    )


def _specs(text: str) -> list[str]:
    """Recipes with their knobs, split at commas; a number after a comma belongs to its list."""
    specs: list[str] = []
    for part in text.split(","):
        if specs and re.match(r"\s*-?\d+(\s|$)", part):
            specs[-1] += f",{part.strip()}"
        else:
            specs.append(part.strip())
    refuse_twice(specs, f"--recipes {text}")
    return specs


def _config(spec: str) -> SWAAConfig:
    """``fast full_decode=none window=4096``: a recipe and the knobs that change it."""
    knobs = [field.name for field in dataclasses.fields(SWAAConfig)]
    recipe, *changes = spec.split() or [""]
    values: dict[str, str | None] = dict.fromkeys(knobs)
    for change in changes:
        knob, equals, value = change.partition("=")
        if knob not in knobs or not equals:
            raise ValueError(
                f"--recipes {spec!r}: {change!r} is not a knob;"
                f" write one of {', '.join(knobs)} as knob=value"
            )
        values[knob] = value
    return config_from(argparse.Namespace(recipe=recipe, **values))
