"""Where a `vllm serve` will listen, according to its arguments, and whether it answers there."""

from __future__ import annotations

import contextlib
import http
import http.client
import itertools
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 5.0
_FLAGS = ("host", "port", "uds", "ssl-certfile", "headless", "config", "additional-config")
"""Flags that say where a server answers and what it is asked for."""

HERE = "127.0.0.1"
"""Where a server listens unless told otherwise."""

EVERYWHERE = ("", "0.0.0.0", "::")
"""Hosts that mean all of a machine's addresses."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Address of a server on this machine.

    Attributes:
        host: name or number.
        port: TCP port.
        tls: whether it uses HTTPS; its certificate is not checked.
        uds: the socket file that it listens on instead, or None.
    """

    host: str = HERE
    port: int = 8000
    tls: bool = False
    uds: str | None = None

    def __str__(self) -> str:
        return self.uds or f"{self.host} port {self.port}"

    def is_taken(self) -> bool:
        """Whether anything listens there."""
        try:
            self._socket().close()
        except OSError:
            return False
        return True

    def answers(self) -> bool:
        """Whether a server is up: it says so, or refuses to tell."""
        try:
            with contextlib.closing(self._connection()) as connection:
                connection.request("GET", "/health")
                return connection.getresponse().status != http.HTTPStatus.SERVICE_UNAVAILABLE
        except ssl.SSLError:
            return True  # it may want a client certificate
        except (OSError, http.client.HTTPException):
            return False

    def _connection(self) -> http.client.HTTPConnection:
        # Over our own socket: a proxy's answer would say nothing about the server.
        made = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
        made.sock = self._socket()
        if self.tls:
            unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            unverified.check_hostname = False
            unverified.verify_mode = ssl.CERT_NONE
            made.sock = unverified.wrap_socket(made.sock)
        return made

    def _socket(self) -> socket.socket:
        if self.uds is None:
            return socket.create_connection((self.host, self.port), TIMEOUT_S)
        made = socket.socket(socket.AF_UNIX)
        try:
            made.settimeout(TIMEOUT_S)
            made.connect(self.uds)
        except OSError:
            made.close()
            raise
        return made


def find_address(arguments: Sequence[str]) -> Address | None:
    """Where ``vllm serve`` with these arguments answers; None: nowhere, or without workers here.

    Args:
        arguments: of ``vllm serve``; a ``--config`` file among them is also read.

    Raises:
        ValueError: for an ``--additional-config`` among them, which would replace the one from
            ``swaa serve``; for a file that cannot be read; for a flag cut short, or a port that is
            not known before the server starts.
    """
    values = read_flags(arguments)
    if "additional-config" in values:
        raise ValueError(
            "--additional-config cannot be combined with 'swaa serve';"
            " run 'vllm serve' with your own, holding a key 'swaa'"
        )
    if values.get("headless", False) is not False:
        return None
    if str(values.get("data-parallel-size-local")) == "0":
        return None
    host, port = values.get("host") or "", str(values.get("port", 8000))
    if not port.isdecimal() or int(port) == 0:
        raise ValueError(f"--port {port}: expected a number above 0")
    return Address(
        host=HERE if host in EVERYWHERE else host,
        port=int(port),
        tls=bool(values.get("ssl-certfile")),
        uds=values.get("uds"),
    )


def kept_to_this_machine(arguments: Sequence[str]) -> list[str]:
    """Arguments of ``vllm serve``, with a ``--host`` of this machine where they name none.

    By default vLLM listens on every address, so that anybody who reaches the machine can connect.
    """
    flags = read_flags(arguments)
    named = flags.keys() & {"host", "uds"} or flags.get("headless", False) is not False
    return [*arguments, *(() if named else ("--host", HERE))]


def read_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Each flag's value, as vLLM reads it: ``--a-b c``, ``--a_b=c``, ``--a.x c``, or a file.

    Args:
        arguments: of ``vllm serve``.

    Raises:
        ValueError: for a ``--config`` file that cannot be read, and for a flag of interest that is
            cut short.
    """
    found: dict[str, Any] = {}
    for word, following in itertools.pairwise([*arguments, ""]):
        if not word.startswith("--"):
            continue
        name, is_joined, value = word[2:].partition("=")
        name = name.partition(".")[0].replace("_", "-")
        whole = next((flag for flag in _FLAGS if name and flag.startswith(name)), name)
        if whole != name and name not in _FLAGS:
            raise ValueError(f"--{name}: write the flag out: --{whole}")
        if is_joined and name == "config":
            raise ValueError(f"{word}: vLLM reads no file so; write --config {value}")
        found[name] = value if is_joined else following
    return {**_config_file(found["config"]), **found} if "config" in found else found


def _config_file(path: str) -> Mapping[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"--config {path} cannot be read: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} holds no flags; expected YAML such as 'port: 8001'")
    return {str(name).partition(".")[0].replace("_", "-"): value for name, value in values.items()}
