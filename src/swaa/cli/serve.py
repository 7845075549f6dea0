"""`swaa serve`: a serving engine under a recipe; ends at once if the workers do not confirm it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.cli import Parser
from swaa.cli.options import DEFAULT_RECIPE, add_config_options, add_flags, config_from

if TYPE_CHECKING:
    from swaa.integrations.settings import Settings

ENGINES = {"vllm": "vllm serve", "sglang": "sglang serve"}
"""Serving engines, and the command that each is started by."""

DEFAULT_RECIPES = {"vllm": DEFAULT_RECIPE, "sglang": "balanced"}
"""The recipe of each without ``--recipe``: SGLang serves no selected layers."""


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model by vLLM or SGLang under a recipe",
        usage="swaa serve MODEL [--engine E] [--recipe R] [knobs] [arguments of the engine]",
        description="Start 'vllm serve' or 'sglang serve' under a recipe. Every argument that is"
        " not listed here goes to the engine. The server is ended unless every worker confirms that"
        " the recipe is active. It listens on 127.0.0.1 unless --host or --uds says otherwise.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name")
    _add_options(parser)
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="of the engine (default: none)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until the server ends; returns its exit code."""
    from swaa.integrations.settings import Settings
    from swaa.models import EMBEDDED

    own = Parser(prog="swaa serve", add_help=False, passes_on=True)
    _add_options(own)
    own, rest = own.parse_known_args(args.arguments, argparse.Namespace(**vars(args)))
    engine = own.engine
    launch = importlib.import_module(f"swaa.integrations.{engine}.launch")
    launch.check_installed()
    if own.model.startswith(("/", "./", "../", "~")) and not Path(own.model).expanduser().exists():
        raise FileNotFoundError(f"no such file or folder: {own.model}")
    if own.model == EMBEDDED:
        raise ValueError(
            f"{EMBEDDED} is a GGUF file, which the engines do not load; serve a folder or a hub"
            " name"
        )
    carried = _carried(own.model, engine, rest) if own.recipe is None else None
    publish = own.publish_generated or (carried is not None and carried.publish_generated)
    config = config_from(
        own, default=DEFAULT_RECIPES[engine] if carried is None else carried.config
    )
    if config.window is None:
        raise ValueError(f"the recipe leaves every layer full; run '{ENGINES[engine]}' for that")
    if own.recipe is None:
        source = (
            f"{DEFAULT_RECIPES[engine]}, the default" if carried is None else "the checkpoint's own"
        )
        print(f"swaa serve: recipe: {source}", file=sys.stderr, flush=True)
    arguments = rest if engine == "sglang" else _kept_to_this_machine(rest)
    settings = Settings(config=config, publish_generated=publish)
    return launch.serve([own.model, *arguments], settings)


def _kept_to_this_machine(arguments: Sequence[str]) -> list[str]:
    """Arguments of vLLM, which by itself listens on every address; SGLang does not."""
    from swaa.integrations.vllm.address import kept_to_this_machine

    kept = kept_to_this_machine(arguments)
    if len(kept) > len(arguments):
        print(
            "swaa serve: listens on this machine only; --host 0.0.0.0 opens it to others",
            file=sys.stderr,
            flush=True,
        )
    return kept


def _carried(model: str, engine: str, arguments: Sequence[str]) -> Settings | None:
    """What a checkpoint's config.json asks for, or None; a hub model's, if it can be reached."""
    from transformers import PreTrainedConfig

    from swaa.integrations.settings import carried_in, parse

    address = importlib.import_module(f"swaa.integrations.{engine}.address")
    flags = address.read_flags(arguments)
    where = flags.get("hf-config-path", model)
    try:
        values, _ = PreTrainedConfig.get_config_dict(where, revision=flags.get("revision"))
    except (OSError, ValueError):
        return None  # engines can load from more places, and report what is wrong
    carried = carried_in(values)
    return None if carried is None else parse(carried)


def _add_options(parser: argparse.ArgumentParser) -> None:
    carried = "what the model's config.json carries, or {vllm}, in SGLang {sglang}"
    add_flags(parser, f"--engine {'|'.join(ENGINES)}=vllm  that serves")
    add_config_options(parser, default=carried.format(**DEFAULT_RECIPES))
    add_flags(
        parser,
        """
        --publish-generated  let keys of the dense tail and of generated tokens into the prefix
            cache (default: off; see docs/reference/vllm.md)
        """,
    )
