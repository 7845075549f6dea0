"""`swaa serve`: `vllm serve` under a recipe, ended at once if the workers do not confirm it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from swaa.cli import Parser
from swaa.cli.options import add_config_options, config_from


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model by vLLM under a recipe",
        usage="swaa serve MODEL [--recipe R] [knobs] [arguments of vllm serve]",
        description="Start 'vllm serve' under a recipe. Every argument that is not listed here goes"
        " to vLLM. The server is ended unless every worker confirms that the recipe is active.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name")
    _add_options(parser)
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="of 'vllm serve' (default: none)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until the server ends; its exit code."""
    from swaa.integrations.vllm.launch import serve

    own = Parser(prog="swaa serve", add_help=False)
    _add_options(own)
    own, rest = own.parse_known_args(args.arguments, argparse.Namespace(**vars(args)))
    config = config_from(own)
    if config.window is None:
        raise ValueError("the recipe leaves every layer full; run 'vllm serve' for that")
    if any(word.split("=")[0] == "--additional-config" for word in rest):
        raise ValueError(
            "--additional-config cannot be combined with 'swaa serve';"
            " run 'vllm serve' with your own, holding a key 'swaa'"
        )
    wanted = {"recipe": config.to_dict(), "publish_generated": own.publish_generated}
    return serve([own.model, *rest, "--additional-config", json.dumps({"swaa": wanted})])


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_config_options(parser)
    parser.add_argument(
        "--publish-generated",
        action="store_true",
        help="let keys of the dense tail and of generated tokens into the prefix cache (default:"
        " off; see docs/vllm.md)",
    )
