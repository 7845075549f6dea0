"""`swaa chat`: talk to a model under a recipe, line by line."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from swaa.cli.options import (
    DEFAULT_RECIPE,
    add_backend_option,
    add_config_options,
    add_flags,
    add_model_options,
    config_from,
    require_at_least,
)

if TYPE_CHECKING:
    from swaa.chat import Conversation

EXIT, RESET = "/exit", "/reset"


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "chat",
        help="talk to a model under a recipe",
        description="Talk to a model under a recipe. Each line is a message, from the terminal or"
        f" from a pipe; {RESET} starts over, {EXIT} or the end of the input (Ctrl-D) quits, Ctrl-C"
        " stops an answer. Answers are greedy.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        default="smollm2",
        metavar="MODEL",
        help="folder, hub name, GGUF file, or smollm2 (default: %(default)s)",
    )
    add_config_options(parser, default=f"what the model's config.json carries, or {DEFAULT_RECIPE}")
    add_flags(parser, "--max-new-tokens N=512  longest answer (tokens, default: %(default)s)")
    add_model_options(parser)
    add_backend_option(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    require_at_least(args, 1, "max_new_tokens", unit="tokens")
    config_from(args)  # find mistakes before minutes are spent on loading a model

    from swaa.adaptation import adapt
    from swaa.chat import Conversation
    from swaa.models import load_model

    loaded = load_model(
        args.model,
        dtype=args.dtype,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
    )
    carried = getattr(loaded.model.config, "swaa", None)
    config = config_from(args, default=DEFAULT_RECIPE if carried is None else carried)
    if config.window is None:
        if args.backend != "auto":
            raise ValueError("--backend would do nothing: every layer is full")
        print("full attention, the model as it is", flush=True)
    else:
        adapt(loaded.model, config, backend=args.backend)
    _talk(Conversation(loaded, max_new_tokens=args.max_new_tokens))
    return 0


def _talk(conversation: Conversation) -> None:
    if sys.stdin.isatty():
        print(f"{RESET} starts over, {EXIT} or Ctrl-D quits", flush=True)
    for line in _lines():
        if line == EXIT:
            return
        if line == RESET:
            conversation.reset()
        elif re.fullmatch(r"/\w+", line):
            print(f"swaa chat: {line}? There are {RESET} and {EXIT}", file=sys.stderr, flush=True)
        elif line:
            _answer(conversation, line)


def _answer(conversation: Conversation, text: str) -> None:
    """Print an answer as it comes; an error ends the turn, not the conversation."""
    try:
        conversation.ask(text, _print_piece)
    except ValueError as error:
        print(f"swaa chat: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("\nswaa chat: stopped; the turn is forgotten", file=sys.stderr, flush=True)
    else:
        print("\n", flush=True)


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _lines() -> Iterator[str]:
    """The input's lines, without spaces around them; on a terminal each has a prompt."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401 # arrow keys and history for input()
    while True:
        try:
            yield input("> " if terminal else "").strip()
        except EOFError:
            if terminal:
                print()
            return
