"""Serve recipes under the same workloads: one result for each of both, finished ones skipped."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa import results
from swaa.benchmark.serve.alone import ask_alone
from swaa.benchmark.serve.client import connection_to
from swaa.benchmark.serve.load import Load, run_load, samples, summarize
from swaa.benchmark.serve.process import Server, launch_command, running
from swaa.benchmark.serve.watch import watching
from swaa.benchmark.serve.workload import Workload
from swaa.config import SWAAConfig
from swaa.http.address import Address
from swaa.redaction import arguments_without_secrets

KIND = "serve"
"""Folder of these results."""

SERVED = "served"
"""Machine of an endpoint whose user did not name it."""


@dataclass(frozen=True, kw_only=True)
class Endpoint(Address):
    """A server that is already running; which recipe it runs is what the user says.

    Attributes:
        device: what it runs on.
    """

    device: str = SERVED


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Starts a new ``vllm serve`` for each recipe.

    Attributes:
        arguments: for ``vllm serve``; ``--max-model-len`` is added unless it is among them.
        timeout_s: longest wait for a server's first answer (seconds).
        device: of this machine.
    """

    arguments: Sequence[str] = ()
    timeout_s: float = 3600.0
    device: str


@dataclass(frozen=True, kw_only=True)
class ServeRun:
    """A recipe on a server, under a workload.

    Attributes:
        model: folder or hub name.
        setting: name of the recipe, or path of its file.
        config: the recipe.
        workload: what is sent.
        source: what provides the server.
        timeout_s: longest wait for a piece of an answer (seconds).
        longest: tokens of the longest request of all workloads that the same server is sent;
            ``None``: those of this one.
    """

    model: str
    setting: str
    config: SWAAConfig
    workload: Workload
    source: Endpoint | Launcher
    timeout_s: float = 7200.0
    longest: int | None = None

    @property
    def name(self) -> str:
        """Name of the result file."""
        sizes = f"{self.workload.input_tokens}-{self.workload.output_tokens}"
        words = (Path(self.model).name, Path(self.setting).name, sizes)
        text = "-".join(re.sub(r"[^a-z0-9._]+", "-", word.lower()) for word in words)
        return re.sub(r"-{2,}", "-", text).strip("-._")

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that distinguishes this run; the hash of its file is computed from it."""
        launched = isinstance(self.source, Launcher)
        return {
            "model": Path(self.model).name,
            "setting": Path(self.setting).name.removesuffix(".json"),
            "swaa": self.config.to_dict(),
            "workload": self.workload.to_dict(),
            "server": "vllm" if launched else "endpoint",
            "arguments": _names(arguments_of(self)) if launched else [],
            "device": self.source.device,
        }


def find(run: ServeRun, *, folder: str | Path = results.FOLDER) -> results.Result | None:
    """The result of a finished run; ``None``: it is not finished."""
    return results.find(KIND, run.name, run.identity, folder=folder)


def execute(
    *runs: ServeRun,
    folder: str | Path = results.FOLDER,
    progress: Callable[[int], None] | None = None,
) -> list[results.Result]:
    """Serve a recipe, send one workload after another, keep each one's result as it ends.

    Args:
        runs: what to do; they differ in their workload alone.
        folder: of all results.
        progress: called with the number of requests that have ended, of all runs together.

    Raises:
        ConnectionError: when there is no server, it dies, or it answers nothing; no result of that
            workload is kept.
    """
    first = runs[0]
    log = results.result_path(KIND, first.name, first.identity, folder=folder).with_suffix(".log")
    found, before = [], 0
    with _served(first, log) as (address, server):
        for number, run in enumerate(runs):
            # A prefix cache may hold these very prompts: a running server's, or the beginnings of
            # an earlier workload's.
            nonce = f"{number or ''}" if server is not None else secrets.token_hex(8)
            said = None if progress is None else _after(before, progress)
            found.append(_measure(run, address, server, nonce, folder, said))
            before += run.workload.requests
    return found


def _after(before: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    return lambda done: progress(before + done)


def _measure(
    run: ServeRun,
    address: Address,
    server: Server | None,
    nonce: str,
    folder: str | Path,
    progress: Callable[[int], None] | None,
) -> results.Result:
    began = time.perf_counter()
    with watching(address) as watch:
        load = run_load(address, run.workload, nonce=nonce, progress=progress)
    _check(load, address)
    rows = [*summarize(load), *filter(None, [watch.row()])]
    if run.workload.checked:
        rows.append(ask_alone(load, address))
    if server is not None:
        server.check()
        rows.append(
            {"metric": "server", "start_s": server.seconds, "kv_tokens": server.kv_tokens()}
        )
    result = _result(run, rows, time.perf_counter() - began)
    results.save(result, samples=samples(load), folder=folder)
    return result


def arguments_of(run: ServeRun) -> list[str]:
    """Arguments for ``vllm serve``: those given, and the length that its workloads need."""
    assert isinstance(run.source, Launcher)
    given = list(run.source.arguments)
    if any(word.split("=")[0] == "--max-model-len" for word in given):
        return given
    length = run.workload.longest_request if run.longest is None else run.longest
    return [*given, "--max-model-len", str(length)]


@contextlib.contextmanager
def _served(run: ServeRun, log: Path) -> Iterator[tuple[Address, Server | None]]:
    source = run.source
    if isinstance(source, Endpoint):
        yield dataclasses.replace(source, timeout_s=run.timeout_s), None
        return
    command = launch_command(run.model, run.setting, full=run.config.window is None)
    with running([*command, *arguments_of(run)], log=log, timeout_s=source.timeout_s) as server:
        yield Address(url=server.url, model=run.model, timeout_s=run.timeout_s), server


def _check(load: Load, address: Address) -> None:
    """Refuse a measurement of a server that answered nothing, or was gone at the end."""
    reasons = "; ".join(f"{count} x {reason}" for reason, count in load.failures.items())
    if not load.finished:
        raise ConnectionError(f"{address.url} answered no request: {reasons}")
    connection = connection_to(address)
    try:
        connection.connect()
    except OSError:
        done = f"{len(load.finished)} of {load.workload.requests} requests"
        raise ConnectionError(
            f"{address.url} died after {done} ({reasons}); no result is kept, start it again"
        ) from None
    finally:
        connection.close()


def _names(arguments: Sequence[str]) -> list[str]:
    # Results hold names, but neither paths nor secrets.
    shown = arguments_without_secrets(arguments)
    return [Path(word).name if Path(word).is_absolute() else word for word in shown]


def _result(run: ServeRun, rows: Sequence[dict[str, Any]], seconds: float) -> results.Result:
    provenance = results.record_provenance(
        model=Path(run.model).name,
        data="random tokens",
        seed=run.workload.seed,
        seconds=seconds,
        packages=("vllm",),
    )
    if isinstance(run.source, Endpoint):
        # What the endpoint runs, and in which versions, is not known here.
        versions = {"python": provenance.versions["python"]}
        provenance = dataclasses.replace(provenance, versions=versions)
    return results.Result(
        kind=KIND,
        name=run.name,
        config=run.identity,
        rows=tuple(rows),
        provenance=dataclasses.replace(provenance, device=run.source.device),
    )
