"""`swaa generate`: answer a question about a document under a recipe, and print its cost."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import sys
import textwrap
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.cli.options import (
    DEFAULT_RECIPE,
    add_backend_option,
    add_config_options,
    add_flags,
    add_model_options,
    config_from,
    load_from,
    name_from,
    require_at_least,
)
from swaa.cli.progress import ProgressBar
from swaa.cli.table import Cell, format_table
from swaa.config import SWAAConfig

if TYPE_CHECKING:
    from torch import Tensor

    from swaa.generation import Generation
    from swaa.models import LoadedModel


STDIN = "-"
"""Stands for standard input where a file name is expected."""


@dataclass(frozen=True)
class _Run:
    """One setting's answer."""

    setting: str
    summary: str
    config: SWAAConfig
    generation: Generation


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "generate",
        help="answer a question about a document under a recipe",
        description="Answer a question about a document under a recipe, and say what it cost.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder, hub name, GGUF file, or smollm2")
    parser.add_argument(
        "--file", required=True, metavar="F", help="the document, UTF-8 text; - reads stdin"
    )
    parser.add_argument("--question", required=True, metavar="Q", help="asked after the document")
    compared = "also run this recipe and show both side by side; 'full' is the model as it is"
    add_flags(parser, f"--compare R  {compared} (default: none)")
    add_config_options(parser, default=f"what the model's config.json carries, or {DEFAULT_RECIPE}")
    add_flags(
        parser,
        """
        --max-new-tokens N=128  longest answer (tokens, default: %(default)s)
        --chunk N=1024  prompt tokens per forward pass; 0: all in one
        --json  one JSON object instead of text (default: text)
        """,
    )
    add_model_options(parser)
    add_backend_option(parser)


def run(args: argparse.Namespace) -> int:
    """Answer, print, and return the exit code."""
    from swaa.recipes import resolve

    # What needs no model is checked before minutes are spent on loading one.
    document = read_document(args.file)
    _check(args)
    setting, config = name_from(args), config_from(args)
    compared = {} if args.compare is None else {args.compare: resolve(args.compare)}

    from swaa.generation import build_prompt, check_context

    loaded = load_from(args)
    carried = getattr(loaded.model.config, "swaa", None)
    if args.recipe is None and carried is not None:
        setting = name_from(args, default="checkpoint")
        config = config_from(args, default=carried)
    settings = [(setting, config), *compared.items()]
    if args.backend != "auto" and all(each.window is None for _, each in settings):
        raise ValueError("--backend would do nothing: every layer is full")
    prompt = build_prompt(loaded.tokenizer, document, args.question)
    check_context(loaded, prompt.shape[1], args.max_new_tokens)
    for name, config in settings:
        if config.covers(prompt.shape[1], args.max_new_tokens):
            what = f"the prompt of {prompt.shape[1]:,} tokens"
            print(f"swaa generate: {name}: {config.idle(what)}", file=sys.stderr, flush=True)
    runs = [_answer(args, loaded, prompt, *item) for item in settings]
    if args.json:
        print(json.dumps({"model": loaded.name, "runs": [_to_dict(run) for run in runs]}, indent=2))
    else:
        _print(runs)
        if args.compare is not None:
            _print_savings(loaded, settings)
    return 0


def read_document(path: str) -> str:
    """The text of a document: from a file, or from standard input for ``-``.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that is empty or not UTF-8 text.
    """
    name = "stdin" if path == STDIN else path
    if path != STDIN and not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
        text = data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None
    if not text.strip():
        raise ValueError(f"the document is empty: {name}")
    return text


def _check(args: argparse.Namespace) -> None:
    if not args.question.strip():
        raise ValueError("--question is empty; say what is asked about the document")
    require_at_least(args, 1, "max_new_tokens", unit="tokens")
    require_at_least(args, 0, "chunk", unit="tokens")


def _answer(
    args: argparse.Namespace,
    loaded: LoadedModel,
    prompt: Tensor,
    setting: str,
    config: SWAAConfig,
) -> _Run:
    from swaa.generation import generate_answer
    from swaa.shortcuts import adapted

    streams = not args.json and args.compare is None
    with contextlib.ExitStack() as stack:
        # Without a window the model is unchanged, with its own choice of attention.
        summary = "full attention, the model as it is"
        if config.window is not None:
            active = adapted(loaded.model, config, backend=args.backend, quiet=True)
            summary = stack.enter_context(active).summary
        if streams:
            print(summary, flush=True)
        with ProgressBar(prompt.shape[1], f"{setting}: prompt") as bar:
            generation = generate_answer(
                loaded,
                prompt,
                max_new_tokens=args.max_new_tokens,
                chunk=args.chunk or None,
                on_prefill=bar.update,
                on_text=_print_piece if streams else None,
            )
    return _Run(setting, summary, config, generation)


def _print_piece(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print(runs: list[_Run]) -> None:
    if len(runs) == 1:
        print("\n")  # ends the streamed answer
    else:
        for item in runs:
            print(f"{item.setting}: {item.summary}")
        print()
        print(_side_by_side(runs), end="\n\n")
    headers = ("setting", "prompt tokens", "first token s", "tokens/s", "KV MiB", "peak KV MiB")
    print(format_table(headers, [_cells(run) for run in runs]))


def _print_savings(loaded: LoadedModel, settings: list[tuple[str, SWAAConfig]]) -> None:
    """The prompt lengths from which each recipe saves a tenth and half of the FLOPs, computed."""
    from swaa.savings import saves_from
    from swaa.shapes import shape_of

    try:
        shape = shape_of(loaded.model.config)
    except ValueError:
        return  # a model that cannot be priced
    sliding = [item for item in settings if item[1].window is not None]
    for name, config in sliding:
        tenth, half = (saves_from(shape, config, share) for share in (0.1, 0.5))
        if tenth is None:
            print(f"{name}: by arithmetic, saves a tenth of a prompt's FLOPs at no length")
            continue
        more = "never half" if half is None else f"half from {half:,} on"
        print(
            f"{name}: by arithmetic, saves a tenth of a prompt's FLOPs from {tenth:,} tokens on,"
            f" {more}"
        )


def _cells(run: _Run) -> tuple[Cell, ...]:
    made = run.generation
    return (
        run.setting,
        made.prompt_tokens,
        f"{made.first_token_s:.2f}",
        None if made.tokens_per_s is None else f"{made.tokens_per_s:.1f}",
        f"{made.kv_bytes / 2**20:.1f}",
        f"{made.peak_kv_bytes / 2**20:.1f}",
    )


def _side_by_side(runs: list[_Run]) -> str:
    """The answers in columns."""
    width = max(20, (shutil.get_terminal_size().columns - 3) // len(runs))
    columns = [
        [run.setting, "-" * len(run.setting), *_wrapped(run.generation.text, width)] for run in runs
    ]
    return "\n".join(
        " | ".join(cell.ljust(width) for cell in cells).rstrip()
        for cells in zip_longest(*columns, fillvalue="")
    )


def _wrapped(text: str, width: int) -> list[str]:
    return [line for part in text.splitlines() for line in textwrap.wrap(part, width) or [""]]


def _to_dict(run: _Run) -> dict[str, Any]:
    return {
        "setting": run.setting,
        "summary": run.summary,
        "config": run.config.to_dict(),
        **dataclasses.asdict(run.generation),
    }
