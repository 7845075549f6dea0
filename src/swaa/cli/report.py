"""`swaa report`: one self-contained page of all results."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from swaa.cli import MISTAKE
from swaa.cli.options import OUTPUT


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="draw all results on one self-contained page",
        description="Write one HTML page of a folder of results: what the recommended recipe keeps"
        " and saves, quality against cost, speed and memory against length, trainings, a mask"
        " explorer and a table of all runs. The page needs no network and no server; its links to"
        " run files are relative to it.",
    )
    parser.add_argument(
        "results", nargs="?", default="results", metavar="DIR", help="folder (default: results)"
    )
    parser.add_argument(
        *OUTPUT, default="report.html", metavar="FILE", help="page (default: report.html)"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help=f"leave with code {MISTAKE} when a file could not be read or drawn (default: 0)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the page; one line on stderr for each file that could not be read or drawn."""
    from swaa.report import write_report

    report = write_report(args.results, args.output)
    for problem in report.problems:
        print(f"swaa report: {problem.path}: {problem.message}", file=sys.stderr)
    print(f"{report.runs} runs, {len(report.problems)} problems; written: {report.path}")
    return MISTAKE if args.strict and report.problems else 0
