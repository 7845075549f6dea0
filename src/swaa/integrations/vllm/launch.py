"""Start ``vllm serve``, and end it unless every worker reports that swaa is active.

When a plugin is missing or filtered out, vLLM goes on with full attention. So the workers write
reports (``report.py``) to a folder that only this server uses, and a server that answers requests
without those reports is ended.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swaa.extras import install_line
from swaa.integrations.vllm.address import Address, find_address
from swaa.integrations.vllm.environment import REPORTS, REQUIRED
from swaa.integrations.vllm.settings import KEY, Settings

GROUP, NAME = "vllm.general_plugins", "swaa"
NOT_ACTIVE = 3
"""Exit code of a server that was ended because swaa was not active."""
POLL_SECONDS = 0.5
END_SECONDS = 30
"""Longest wait before a server that was asked to end during start-up is killed (seconds)."""
RAY_COPIES = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
"""vLLM's variable that names the environment variables to pass on to Ray's workers."""


def serve(arguments: Sequence[str], settings: Settings) -> int:
    """Run ``vllm serve`` until it ends; see :func:`check_installed`.

    Args:
        arguments: of ``vllm serve``, the model first.
        settings: what the plugin must do.

    Returns:
        Its exit code. 3: it was ended because swaa was not active. 1: it ended with code 0 though
        nobody had asked it to, as vLLM does when its engine dies. 128 + N: after signal N.

    Raises:
        ValueError: for arguments that hold their own configuration, or name an address that is
            taken.
    """
    address = find_address(arguments)
    if address is not None and address.is_taken():
        raise ValueError(f"{address} is taken: something listens there already")
    wanted = settings.to_dict()
    with tempfile.TemporaryDirectory(prefix="swaa-serve-") as folder:
        environment = os.environ | {REQUIRED: json.dumps(wanted, sort_keys=True), REPORTS: folder}
        copied = [*filter(None, [environment.get(RAY_COPIES)]), REQUIRED, REPORTS]
        environment[RAY_COPIES] = ",".join(copied)
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments]
        command += ["--additional-config", json.dumps({KEY: wanted})]
        server = subprocess.Popen(
            command, env=environment, preexec_fn=end_with_parent, start_new_session=True
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


def check_installed() -> None:
    """Refuse where vLLM is missing or would not load the plugin.

    Raises:
        ImportError: when vLLM is not installed.
        ValueError: when the plugin is not registered or filtered out.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(f"vLLM is not installed here: {install_line('vllm')}")
    if not any(point.name == NAME for point in importlib.metadata.entry_points(group=GROUP)):
        raise ValueError("swaa's vLLM plugin is not registered: install the package again")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and NAME not in allowed.split(","):
        raise ValueError(f"VLLM_PLUGINS={allowed} keeps swaa out; add {NAME!r} to it")


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
