"""Run a serving engine, and end it unless every worker reports that swaa is active.

When a plugin is missing or filtered out, engines go on with full attention. So the workers write
reports (:func:`write_report`) to a folder that only this server uses, and a server that answers
requests without those reports is ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swaa.integrations.address import Address

PLUGIN = "swaa"
"""Name of the plugin among the entry points of every engine."""
NOT_ACTIVE = 3
"""Exit code of a server that was ended because swaa was not active."""
POLL_SECONDS = 0.5
END_SECONDS = 30
"""Longest wait before a server that was asked to end during start-up is killed (seconds)."""


def run(
    command: Sequence[str],
    address: Address | None,
    *,
    environment: Mapping[str, str],
    reports: str,
) -> int:
    """Run a server until it ends.

    Args:
        command: that starts it.
        address: where it will answer; None: nowhere on this machine.
        environment: variables to set beside those of this process.
        reports: name of the variable that tells workers in which folder to report.

    Returns:
        Its exit code. 3: it was ended because swaa was not active. 1: it ended with code 0 though
        nobody had asked it to, as engines do that die. 128 + N: after signal N.

    Raises:
        ValueError: for an address that is taken.
    """
    if address is not None and address.is_taken():
        raise ValueError(f"{address} is taken: something listens there already")
    with tempfile.TemporaryDirectory(prefix="swaa-serve-") as folder:
        server = subprocess.Popen(
            command,
            env={**os.environ, **environment, reports: folder},
            preexec_fn=end_with_parent,
            start_new_session=True,
        )
        asked_to_end: list[float] = []

        def forward(_number: int, _frame: object) -> None:
            asked_to_end.append(time.monotonic())
            server.send_signal(signal.SIGINT)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, forward)
        try:
            code = _watch(server, Path(folder), address, asked_to_end)
        finally:
            _end(server)
        if code == 0 and not asked_to_end:
            print("swaa serve: the server ended by itself", file=sys.stderr, flush=True)
            return 1
        return 128 - code if code < 0 else code


def require_plugin(engine: str, package: str, group: str, *, install: str) -> None:
    """Refuse where an engine is missing, or would not find swaa's plugin.

    Args:
        engine: its name, for messages.
        package: that it is imported as.
        group: of entry points, by which it finds plugins.
        install: the command that installs it.

    Raises:
        ImportError: when the engine is not installed.
        ValueError: when the plugin is not registered.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{engine} is not installed here: {install}")
    if not any(point.name == PLUGIN for point in importlib.metadata.entry_points(group=group)):
        raise ValueError(f"swaa's {engine} plugin is not registered: install the package again")


def write_report(folder: str, rank: int, ranks: int, summary: str) -> None:
    """Say that a worker is as it should be.

    Args:
        folder: of the reports.
        rank: of the worker.
        ranks: workers of its engine on this machine.
        summary: its line at start.
    """
    path = Path(folder, f"rank-{rank}-{os.getpid()}.json")
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"local_world_size": ranks, "summary": summary}), "utf-8")
    partial.rename(path)  # a reader never sees half of it


def end_with_parent() -> None:
    """Called in a server's process before it starts: it ends even if this process is killed.

    It gets a SIGINT, because vLLM loses a SIGTERM that comes while it starts (0.32, 0.33).
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells' background jobs ignore it
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGINT)


def _watch(
    server: subprocess.Popen[bytes],
    reports: Path,
    address: Address | None,
    asked_to_end: Sequence[float],
) -> int:
    """Wait for the server's end; meanwhile, once it answers, look for the reports."""
    confirmed = False
    while server.poll() is None:
        time.sleep(POLL_SECONDS)
        if confirmed:
            continue  # --shutdown-timeout says how long it may take to end
        if asked_to_end and time.monotonic() - asked_to_end[0] > END_SECONDS:
            _end(server)
        elif address is None or address.answers():
            missing = _missing(reports)
            confirmed = missing is None
            if missing is not None and address is not None:
                print(f"swaa serve: ending the server: {missing}", file=sys.stderr, flush=True)
                _end(server)
                return NOT_ACTIVE
            if confirmed:
                print("swaa serve: every worker confirms the recipe", file=sys.stderr, flush=True)
    return server.returncode


def _missing(reports: Path) -> str | None:
    """What is missing from the reports, or None when all ranks of this machine wrote theirs."""
    found: list[dict[str, Any]] = [json.loads(path.read_text()) for path in reports.glob("*.json")]
    if not found:
        return "no worker says that swaa is active"
    expected = found[0]["local_world_size"]
    if len(found) < expected:
        return f"{len(found)} of {expected} workers say that swaa is active"
    return None


def _end(server: subprocess.Popen[bytes]) -> None:
    """End a server and every process that it left running: they are in its process group."""
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
