"""Start a server for a recipe, and end it by its process id whatever happens in between."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from swaa.integrations.launch import end_with_parent

POLL_SECONDS = 0.5
END_SECONDS = 60
PORTS = 3
"""How many ports are tried, in case other programs take them first."""
_TAKEN = re.compile("address already in use", re.IGNORECASE)
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


class Server:
    """A server that this process started.

    Attributes:
        url: base of its API.
        seconds: from its start to its first answer.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self._port = port
        self._log = log
        self.url = f"http://127.0.0.1:{port}/v1"
        self.seconds = 0.0

    def wait_until_up(self, timeout_s: float) -> None:
        """Wait until it answers.

        Raises:
            ConnectionError: when it ends before it is up, or is not up in time; with the end of its
                log.
        """
        started = time.perf_counter()
        while not self._answers():
            self.check()
            if time.perf_counter() - started > timeout_s:
                raise ConnectionError(f"no answer in {timeout_s:g} s; {self._last_words()}")
            time.sleep(POLL_SECONDS)
        self.seconds = time.perf_counter() - started

    def check(self, grace_s: float = 0.0) -> None:
        """Make sure that it still runs.

        Args:
            grace_s: time to wait for a dying server to end (seconds).

        Raises:
            ConnectionError: when it has ended; with the end of its log.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        code = self._process.poll()
        if code is not None:
            raise ConnectionError(f"the server ended with code {code}; {self._last_words()}")

    def kv_tokens(self) -> int | None:
        """Tokens that its KV cache has room for, where vLLM reports it."""
        found = _KV_TOKENS.findall(self._log.read_text("utf-8", "replace"))
        return int(found[-1].replace(",", "")) if found else None

    def end(self) -> None:
        """End it, and every process that it left running."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        # It leads its own process group, whose id is its process id; engines may outlive it there.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _last_words(self) -> str:
        lines = self._log.read_text("utf-8", "replace").splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        return f"its last line: {said:.300} (full log: {self._log})"


@contextlib.contextmanager
def running(command: Sequence[str], *, log: Path, timeout_s: float) -> Iterator[Server]:
    """A server that runs as long as the block; its log is kept if the block fails.

    Args:
        command: starts the server; ``--host`` and ``--port`` are added.
        log: file for what it prints.
        timeout_s: longest wait for its first answer (seconds).

    Raises:
        ConnectionError: when it does not come up, or has ended by the end of the block.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with _terminated_by_exception(), contextlib.ExitStack() as ended:
        yield _start(command, log, timeout_s, ended)
    log.unlink()


def _start(
    command: Sequence[str], log: Path, timeout_s: float, ended: contextlib.ExitStack
) -> Server:
    ports = PORTS
    while True:
        ports -= 1
        try:
            return ended.enter_context(_started(command, log, timeout_s))
        except ConnectionError:
            # Another program may take the free port before the server does.
            if not ports or not _TAKEN.search(log.read_text("utf-8", "replace")):
                raise


@contextlib.contextmanager
def _started(command: Sequence[str], log: Path, timeout_s: float) -> Iterator[Server]:
    port = _free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    server = Server(process, port, log)
    try:
        server.wait_until_up(timeout_s)
        yield server
        server.check()
    except ConnectionError as error:
        # If the server died, the end of its log says more than "it did not answer".
        server.check(grace_s=2)
        if str(log) in str(error):
            raise
        raise ConnectionError(f"{error} (its log: {log})") from None
    finally:
        server.end()


def launch_command(model: str, recipe: str, *, full: bool) -> list[str]:
    """The command that starts vLLM: ``swaa serve``, or vLLM itself for full attention."""
    if full:
        return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
    return [sys.executable, "-m", "swaa", "serve", model, "--recipe", recipe]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """Let SIGTERM raise, so that servers are ended on the way out."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
