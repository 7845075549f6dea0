"""Start ``vllm serve`` and end it unless every worker says that swaa is active.

vLLM goes on with full attention when a plugin is missing or filtered out. So the workers report
(``report.py``) into a folder that only this server knows, and the server is ended when it answers
requests without those reports.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swaa.integrations.vllm.plugin import REPORTS, REQUIRED

GROUP, NAME = "vllm.general_plugins", "swaa"
NOT_ACTIVE = 3
"""Exit code of a server that was ended because swaa was not active."""
POLL_SECONDS = 0.5


def serve(arguments: Sequence[str]) -> int:
    """Run ``vllm serve`` until it ends.

    Args:
        arguments: of ``vllm serve``, the model first.

    Returns:
        Its exit code, or 3 when it was ended because swaa was not active.

    Raises:
        ImportError: when vLLM is not installed.
        ValueError: when vLLM would not load the plugin.
    """
    check_installed()
    with tempfile.TemporaryDirectory(prefix="swaa-serve-") as folder:
        environment = os.environ | {REQUIRED: "1", REPORTS: folder}
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments]
        server = subprocess.Popen(command, env=environment, preexec_fn=end_with_parent)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda received, _frame: server.send_signal(received))
        try:
            return _watch(server, Path(folder), _health_address(arguments))
        finally:
            if server.poll() is None:
                _end(server)


def check_installed() -> None:
    """Refuse where vLLM is missing or would not load the plugin.

    Raises:
        ImportError: when vLLM is not installed.
        ValueError: when the plugin is not registered or filtered out.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ImportError("vLLM is not installed here: pip install 'swaa[vllm]'")
    if not any(point.name == NAME for point in importlib.metadata.entry_points(group=GROUP)):
        raise ValueError("swaa's vLLM plugin is not registered: install the package again")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and NAME not in allowed.split(","):
        raise ValueError(f"VLLM_PLUGINS={allowed} keeps swaa out; add {NAME!r} to it")


def end_with_parent() -> None:
    """In a server, before it starts: not even a kill of this process leaves it behind."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _watch(server: subprocess.Popen[bytes], reports: Path, address: str | None) -> int:
    """Wait for the end; meanwhile, once the server answers, look for the reports."""
    confirmed = False
    while server.poll() is None:
        time.sleep(POLL_SECONDS)
        if not confirmed and (address is None or _healthy(address)):
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
    """What the reports lack, or None when all ranks of this machine wrote theirs."""
    found: list[dict[str, Any]] = [json.loads(path.read_text()) for path in reports.glob("*.json")]
    if not found:
        return "no worker says that swaa is active"
    expected = found[0]["local_world_size"]
    if len(found) < expected:
        return f"{len(found)} of {expected} workers say that swaa is active"
    return None


def _health_address(arguments: Sequence[str]) -> str | None:
    """Where the server says that it is up; None when it listens on a socket file."""
    values = {"--port": "8000", "--host": "127.0.0.1"}
    words = [part for word in arguments for part in word.split("=", 1)]
    for name, value in itertools.pairwise(words):
        if name in values:
            values[name] = value
    if "--uds" in words:
        return None
    host = values["--host"]
    host = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    scheme = "https" if "--ssl-certfile" in words else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{values['--port']}/health"


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
