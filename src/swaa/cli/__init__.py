"""The command `swaa`: a table of verbs, of which only the chosen one is imported."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from swaa import __version__
from swaa.cli.numbers import whole_number

VERBS = {
    "demo": "watch a small model lose a fact under a plain window and find it again",
    "generate": "answer a question about a document under a recipe",
    "chat": "talk to a model under a recipe",
    "plan": "price a recipe on a model: KV bytes and FLOPs, without loading weights",
    "eval": "measure recipes on tasks, with confidence intervals",
    "distill": "let the full-attention model answer questions, and keep what is right",
    "train": "train a LoRA under a recipe's mask",
    "tune": "find which layers stay full for a model, your prompts and a budget",
    "serve": "serve a model by vLLM under a recipe",
    "recipes": "list the shipped recipes, or show one",
    "bench": "measure prefill and decode against the best stock attention",
    "report": "draw all results on one self-contained page",
    "env": "say which versions, devices and backends are here",
}
"""Each verb is the module ``swaa.cli.<verb>`` with ``register(subparsers)`` and ``run(args)``."""

MISTAKE = 2
"""Exit code for wrong input."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line, and whose numbers may end in k.

    Args:
        args: of :class:`argparse.ArgumentParser`.
        passes_on: accept unknown arguments and leave them to the caller.
        options: of :class:`argparse.ArgumentParser`.
    """

    def __init__(self, *args: object, passes_on: bool = False, **options: object) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)  # pyright: ignore[reportArgumentType]
        self.register("type", int, whole_number)
        self._passes_on = passes_on

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """Like argparse's, but unknown arguments are refused here, where the known ones are listed.

        Args:
            args: words; ``None``: those of the process.
            namespace: takes the values; ``None``: a new one.
        """
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and not self._passes_on:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return found, unknown

    def _meant(self, unknown: Sequence[str]) -> str:
        """``; did you mean --window?``, for the first unknown flag."""
        flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
        if flag is None:
            return ""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        longer = [name for name in known if name.startswith(flag)] if len(flag) > 2 else []
        near = longer or difflib.get_close_matches(flag.replace("_", "-"), known, n=1)
        return f"; did you mean {near[0]}?" if near else ""

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and exit with code 2."""
        self.exit(MISTAKE, f"{self.prog}: {message} (see '{self.prog} --help')\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; ``None``: those of the process.

    Returns:
        The exit code: 0, or 2 after wrong input.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in words if not word.startswith("-")), None)
    try:
        return _run(words, verb)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return _say(_heading(words, verb), "interrupted", 130)
    except BrokenPipeError:
        # The reader (`| head`) has gone; Python must not fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        if "--traceback" in words:
            raise
        return _say(_heading(words, verb), str(error) or type(error).__name__, MISTAKE)


def _run(words: list[str], verb: str | None) -> int:
    if verb is not None and verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown verb {verb!r}{meant} (known: {', '.join(VERBS)})")
    module = importlib.import_module(f"swaa.cli.{verb}") if verb else None
    parser = Parser(
        prog="swaa", description="Cheap long prompts for pretrained full-attention models."
    )
    parser.add_argument("--version", action="version", version=f"swaa {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="on a mistake, show where it arose (default: off)"
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, summary in VERBS.items():
        if module is not None and name == verb:
            module.register(subparsers)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    args = parser.parse_args(words)
    if module is None:
        parser.print_help()
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return module.run(args)


def _show_warning(message: Warning | str, *_context: object) -> None:
    # Python's own form shows a source file and its line: noise for a user of the command line.
    print(f"swaa: warning: {_one_line(message)}", file=sys.stderr)


def _heading(words: list[str], verb: str | None) -> str:
    """``swaa bench generate``: the verb, with its sub-verb where it has one."""
    if verb not in VERBS:
        return "swaa"
    behind = words[words.index(verb) + 1 :][:1] if verb == "bench" else []
    return " ".join(["swaa", verb, *(word for word in behind if not word.startswith("-"))])


def _say(heading: str, message: str, code: int) -> int:
    print(f"{heading}: {_one_line(message)}", file=sys.stderr)
    return code


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
