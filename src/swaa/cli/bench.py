"""`swaa bench`: measure on this GPU, against the best stock implementations.

Each thing to measure is a module ``swaa.cli.bench_<name>`` next to this file: its
``register(subparsers)`` adds the sub-verb and sets the default ``bench`` to the function that runs
it, ``(args) -> exit code``.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="measure prefill and decode against the best stock attention",
        description="Measure on this GPU, in one process with the best stock kernels.",
    )
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name.startswith("bench_"):
            importlib.import_module(f"swaa.cli.{module.name}").register(what)


def run(args: argparse.Namespace) -> int:
    """Measure what was asked for, and return the exit code."""
    return args.bench(args)
