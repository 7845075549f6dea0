"""`swaa bench kernels`: attention kernels on this GPU, against the best stock kernels."""

from __future__ import annotations

import argparse
import functools
import json
from typing import TYPE_CHECKING, Any

from swaa.cli.options import (
    add_flags,
    add_measured_options,
    made_from,
    tables_aside,
    whole_numbers,
    words,
)

if TYPE_CHECKING:
    from swaa.benchmark.kernels.measure import Options
    from swaa.results import Result


def register(subparsers: Any) -> None:
    """Add the sub-verb to ``swaa bench``."""
    parser = subparsers.add_parser(
        "kernels",
        help="attention kernels: prefill, decode, backward",
        description="Time attention kernels. Each first shows on this GPU which keys its rows see;"
        " one whose mask is wrong is not timed.",
    )
    add_flags(
        parser,
        """
        --phases P=prefill,decode,backward  of prefill, decode, backward (default: all)
        --lengths N,N=32768,131072  tokens, for prefill and full decode
        --backward-lengths N,N=32768  tokens, for backward
        --windows N,N=2048  keys a sliding row sees, itself included
        --sink-tokens N,N=128  first tokens that every row sees
        --decode-keys N,N  keys that full decode chooses by content, in place of all (default: not
            measured)
        --heads N=32  query heads
        --kv-heads N=8  key and value heads
        --head-dim N=128  channels per head
        --batch N=32  sequences, for sliding decode
        --dtype T=bfloat16  bfloat16 or float16
        --backends B=triton,fa4  of ours
        --no-stock  measure ours only (default: stock kernels too)
        """,
    )
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

    import torch

    from swaa import results
    from swaa.benchmark.kernels import measure as kernels
    from swaa.benchmark.kernels.plot import plot_kernels
    from swaa.benchmark.unfinished import not_begun

    found = None
    if torch.cuda.is_available():
        name, config = kernels.file_name(options), kernels.config_of(options)
        found = results.find("kernels", name, config, folder=args.results)
    save = functools.partial(results.save, folder=args.results)
    finished = found is not None and not not_begun(found.rows)
    if found is not None and finished and not args.again:
        result = found
        print(f"measured on {result.provenance.created[:10]}; use --again to measure again")
        for row in result.rows[1:]:
            print(kernels.describe(dict(row)))
    elif finished:  # only another finished run replaces it
        result = kernels.measure(options)
    else:
        result = kernels.measure(options, keep=save)
    path = save(result)
    try:
        title = f"{result.provenance.device}, torch {result.provenance.versions['torch']}"
        plot_kernels(result.rows, path.with_suffix(".png"), title=title)
    except (ImportError, ValueError) as error:  # the numbers are kept all the same
        print(f"no plot: {error}")
    print(f"kept in {path}")
    return result


def _options(args: argparse.Namespace) -> Options:
    from swaa.benchmark.kernels.measure import Options

    return made_from(
        args,
        Options,
        phases=words(args.phases, "--phases"),
        lengths=whole_numbers(args.lengths, "--lengths"),
        backward_lengths=whole_numbers(args.backward_lengths, "--backward-lengths"),
        windows=whole_numbers(args.windows, "--windows"),
        sink_tokens=whole_numbers(args.sink_tokens, "--sink-tokens", least=0),
        backends=words(args.backends, "--backends"),
        stock=not args.no_stock,
        decode_keys=whole_numbers(args.decode_keys, "--decode-keys") if args.decode_keys else (),
    )
