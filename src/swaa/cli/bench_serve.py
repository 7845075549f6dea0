"""`swaa bench serve`: serve several recipes under the same workloads."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.cli.endpoints import add_key_over_http
from swaa.cli.options import add_flags, add_results_option, flag_of, words
from swaa.cli.progress import ProgressBar
from swaa.cli.table import Cell, format_table

if TYPE_CHECKING:
    from swaa.benchmark.serve.measure import Endpoint, Launcher, ServeRun
    from swaa.benchmark.serve.workload import Workload
    from swaa.results import Result

DEFAULT_RECIPES = "full,fast,balanced"
_FLAGS = f"""
--recipes R={DEFAULT_RECIPES}  to compare; 'full' is vLLM without swaa
workload: a preset, and numbers on top of it
--workload W,W=short  paper (100 requests of 128,000 + 512 tokens), single (5 of those, one after
    another), long (32 of 32,768 + 256), mixed (64 of 1,000 to 64,000 + 256, one a second), short
    (32 of 4,096 + 128) or smoke; several go to the same server one after another; numbers may
    follow a name: 'paper requests=12,mixed rate=0.5'
--input-tokens N  tokens of each prompt, exactly (default: the workload's)
--shortest-tokens N  of the shortest prompt; lengths are spread up to --input-tokens (default: the
    workload's, all alike)
--output-tokens N  tokens generated for each (default: the workload's)
--requests N  requests (default: the workload's)
--concurrency N  most requests under way (default: the workload's)
--checked N  requests that are asked once more alone, whose answers must be the same (default: 0)
--vocabulary N  token ids are drawn below this, the first tenth left out (default: the workload's)
--seed N  of prompts and arrivals (default: the workload's)
--rate X  requests a second, arriving at random (default: the workload's, all at once)
"""

_SERVER_FLAGS = """
--endpoint URL  OpenAI-compatible server that is already running, such as
    http://127.0.0.1:8000/v1; --recipes then names the recipe it runs (default: vLLM is started)
--served-model M  what that server calls it (default: MODEL)
--device-name D  what that server runs on (default: -)
--key-variable V=OPENAI_API_KEY  environment variable with that server's key
--start-timeout S=3600.0  longest wait for a started server (seconds, default: %(default)s)
--timeout S=7200.0  longest wait for a piece of an answer (seconds, default: %(default)s)
"""


def register(subparsers: Any) -> None:
    """Add the sub-verb to ``swaa bench``."""
    parser = subparsers.add_parser(
        "serve",
        help="recipes on a server: time to first token, time per token, throughput",
        description="Send workloads of random prompts to a server under each recipe. vLLM"
        " starts the servers one after another, or you name one that is already running. When all"
        " requests arrive at once, time to first token is mostly time in the queue.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name")
    add_flags(parser, _FLAGS)
    add_results_option(parser)
    add_flags(parser, "--again  measure what is measured already (default: show it)")
    add_flags(parser, "--json  print JSON (default: a table)")
    group = parser.add_argument_group("server")
    add_flags(group, _SERVER_FLAGS)
    add_key_over_http(group)
    group.add_argument(
        "--vllm",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="everything after this flag goes to 'vllm serve' (default: nothing, and"
        " --max-model-len as the workload needs it)",
    )
    parser.set_defaults(bench=run)


def run(args: argparse.Namespace) -> int:
    """Do the runs that are not done yet, and print all results."""
    runs = _runs(args)

    from swaa.benchmark.serve import measure as serve

    found: list[Result] = []
    for number, group in enumerate(runs, start=1):
        done = [None if args.again else serve.find(one, folder=args.results) for one in group]
        left = [one for one, result in zip(group, done, strict=True) if result is None]
        made: list[Result] = []
        if left:
            label = f"{left[0].setting} ({number} of {len(runs)})"
            with ProgressBar(sum(one.workload.requests for one in left), label) as bar:
                bar.update(0, f"{label}: starting")
                update = functools.partial(bar.update, label=label)
                made = serve.execute(*left, folder=args.results, progress=update)
        new = iter(made)
        found += [next(new) if result is None else result for result in done]
    if args.json:
        print(json.dumps([result.to_dict() for result in found], indent=2))
    else:
        _print(found)
    return 0


def _runs(args: argparse.Namespace) -> list[list[ServeRun]]:
    """The runs of each recipe; mistakes in any of them are found here."""
    from swaa.benchmark.serve.measure import ServeRun
    from swaa.recipes import resolve

    names = words(args.recipes, "--recipes")
    settings = [(name, resolve(name)) for name in names]
    workloads = [_workload(args, spec) for spec in words(args.workload, "--workload")]
    _check_vocabulary(args.model, max(workload.vocabulary for workload in workloads))
    source = _source(args, names)
    return [
        [
            ServeRun(
                model=args.model,
                setting=name,
                config=config,
                workload=workload,
                source=source,
                timeout_s=args.timeout,
                longest=max(one.longest_request for one in workloads),
            )
            for workload in workloads
        ]
        for name, config in settings
    ]


def _workload(args: argparse.Namespace, spec: str) -> Workload:
    """``paper requests=12``: a preset, the numbers after it, and those of flags."""
    from swaa.benchmark.serve.workload import PRESETS, Workload

    name, *changes = spec.split()
    if name not in PRESETS:
        raise ValueError(f"unknown workload {name!r}; choose from {', '.join(PRESETS)}")
    fields = [field.name for field in dataclasses.fields(Workload)]
    given = {field: getattr(args, field) for field in fields}
    values = {field: value for field, value in given.items() if value is not None}
    for change in changes:
        field, _, value = change.partition("=")
        read = float if field == "rate" else int
        try:
            values[field] = read(value) if field in fields else None
        except ValueError:
            values[field] = None
        if values[field] is None:
            raise ValueError(
                f"--workload {spec!r}: {change!r} is not understood; write one of"
                f" {', '.join(fields)} as name=number"
            )
    return dataclasses.replace(PRESETS[name], **values)


def _check_vocabulary(model: str, tokens: int) -> None:
    """Refuse token ids that the model lacks, which can end a server; for hub models, vLLM knows."""
    path = Path(model).expanduser() / "config.json"
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    known = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if known is not None and tokens > known:
        raise ValueError(
            f"token ids are drawn below {tokens}, the model has {known}: give --vocabulary {known}"
        )


def _source(args: argparse.Namespace, names: tuple[str, ...]) -> Endpoint | Launcher:
    from swaa.benchmark.serve.device import local_device
    from swaa.benchmark.serve.measure import SERVED, Endpoint, Launcher

    if args.endpoint is None:
        for name in ("served_model", "device_name", "key_over_http"):
            if getattr(args, name):
                raise ValueError(f"{flag_of(name)} would do nothing without --endpoint")
        from swaa.integrations.vllm.launch import check_installed

        check_installed()
        return Launcher(
            arguments=tuple(args.vllm or ()),
            timeout_s=args.start_timeout,
            device=local_device(),
        )
    if args.vllm:
        raise ValueError("--vllm would do nothing with --endpoint: that server is already running")
    if len(names) > 1:
        raise ValueError("a server runs one recipe; name it alone: --recipes R")
    return Endpoint(
        url=args.endpoint,
        model=args.served_model or args.model,
        key=os.environ.get(args.key_variable),
        key_over_http=args.key_over_http,
        device=args.device_name or SERVED,
    )


def _print(found: list[Result]) -> None:
    rows = [_line(result) for result in found]
    headers = ("recipe", "prompt", "TTFT s", "p99", "TPOT ms", "p99", "ITL ms", "tok/s", "req/s")
    print(format_table((*headers, "KV %", "preempted", "finished", "failed"), rows))
    print(
        "medians, unless p99; ITL is between pieces of the stream, tok/s counts prompt and output,"
        " KV % is the most of the cache that was in use; p20, p80 and means are in the result files"
    )
    for result in found:
        setting = result.config["setting"]
        for reason, count in result.rows[0]["failures"].items():
            print(f"{setting}: {count} x {reason}")
        for row in result.rows:
            if row["metric"] == "alone":
                print(f"{setting}: {_compared(row)}")


def _compared(row: Mapping[str, Any]) -> str:
    """What asking some requests again alone has shown."""
    gap = row["largest_gap"]
    parted = f"; where answers part, by {gap:.3f} nats at most" if gap else ""
    counts = [f"{row[name]} {name}" for name in ("equal", "tied", "different", "failed")]
    return f"of {row['checked']} answers, asked again alone: {', '.join(counts)}{parted}"


def _line(result: Result) -> list[Cell]:
    rows = {row["metric"]: row for row in result.rows}
    whole = rows["requests"]

    workload, engine = result.config["workload"], rows.get("engine", {})
    shortest = workload["shortest_tokens"]

    def time(name: str, unit: float, digits: int, rank: str = "p50") -> str | None:
        return f"{rows[name][rank] / unit:.{digits}f}" if name in rows else None

    return [
        result.config["setting"],
        f"{workload['input_tokens']:,}" if shortest is None else f"to {workload['input_tokens']:,}",
        time("ttft_s", 1, 3),
        time("ttft_s", 1, 3, "p99"),
        time("tpot_s", 1e-3, 2),
        time("tpot_s", 1e-3, 2, "p99"),
        time("itl_s", 1e-3, 2),
        f"{whole['total_tokens_per_s']:.0f}",
        f"{whole['requests_per_s']:.3f}",
        f"{100 * engine['kv_used_max']:.0f}" if engine else None,
        engine.get("preemptions"),
        whole["finished"],
        whole["failed"],
    ]
