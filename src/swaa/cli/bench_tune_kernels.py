"""`swaa bench tune-kernels`: find the tile sizes of our Triton kernels for this GPU."""

from __future__ import annotations

import argparse
import json
from typing import Any

from swaa.cli.options import OUTPUT, add_flags, made_from, tables_aside, whole_numbers, words


def register(subparsers: Any) -> None:
    """Add the sub-verb to ``swaa bench``."""
    parser = subparsers.add_parser(
        "tune-kernels",
        help="find the tile sizes of our Triton kernels for this GPU",
        description="Try tile sizes one knob at a time, from those in force; exact masks and"
        " gradients first. Writes the table of this GPU, which then is what the kernels run with."
        " Takes minutes: every tile is compiled.",
    )
    add_flags(
        parser,
        """
        --kernels K=hopper,prefill,dq,dkdv,sinks  of hopper, prefill, dq, dkdv, sinks (default: all
            that this GPU uses)
        --head-dims N,N=64,128,256  channels per head
        --dtype T=bfloat16  bfloat16 or float16
        --tokens N=16384  length of the prompt that is timed, in tokens
        --window N=2048  keys a sliding row sees, itself included
        --sink-tokens N=128  first tokens that every row sees
        --json  print the table as JSON alone (default: what was tried)
        """,
    )
    parser.add_argument(
        *OUTPUT, metavar="DIR", help="folder of the table (default: inside the package)"
    )
    parser.set_defaults(bench=run)


def run(args: argparse.Namespace) -> int:
    """Tune, print what was tried, and save the table."""
    import importlib.util

    if importlib.util.find_spec("triton") is None:
        raise ValueError("needs Triton, which comes with PyTorch for GPUs")
    from swaa.benchmark.kernels import tune as tune_kernels

    options = made_from(
        args,
        tune_kernels.Options,
        kernels=words(args.kernels, "--kernels"),
        head_dims=whole_numbers(args.head_dims, "--head-dims"),
    )
    with tables_aside(args):
        table = tune_kernels.tune(options)
        print(f"kept in {tune_kernels.save(table, args.output)}")
    if args.json:
        print(json.dumps(table))
    return 0
