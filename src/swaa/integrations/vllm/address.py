"""Where a `vllm serve` will listen, found from its arguments, and whether it answers there."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 5.0
EVERYWHERE = ("", "0.0.0.0", "::")
"""Hosts that stand for all of a machine's addresses."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Of a server on this machine.

    Attributes:
        host: name or number.
        port: of TCP.
        tls: whether it speaks HTTPS; whose certificate it shows does not matter here.
        uds: the socket file that it listens on instead, or None.
    """

    host: str = "127.0.0.1"
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

    def is_healthy(self) -> bool:
        """Whether vLLM says that it serves requests."""
        try:
            with contextlib.closing(self._connection()) as connection:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _connection(self) -> http.client.HTTPConnection:
        # By a socket of our own: a proxy's answer would say nothing of the server.
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
    """Where ``vllm serve`` with these arguments answers; None: nowhere (``--headless``).

    Args:
        arguments: of ``vllm serve``; a ``--config`` file among them is read, too.

    Raises:
        ValueError: for an ``--additional-config`` among them, which would take the place of the
            one that ``swaa serve`` hands over, or for a file that cannot be read.
    """
    given = _flags(arguments)
    values = {**_config_file(given["config"]), **given} if "config" in given else given
    if "additional-config" in values:
        raise ValueError(
            "--additional-config cannot be combined with 'swaa serve';"
            " run 'vllm serve' with your own, holding a key 'swaa'"
        )
    if values.get("headless", False) is not False:
        return None
    host, port = values.get("host") or "", str(values.get("port", 8000))
    if not port.isdecimal():
        raise ValueError(f"--port {port}: expected a number")
    return Address(
        host="127.0.0.1" if host in EVERYWHERE else host,
        port=int(port),
        tls=bool(values.get("ssl-certfile")),
        uds=values.get("uds"),
    )


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    """What follows each flag, as vLLM reads it: ``--a-b c``, ``--a_b=c``, ``--a.x c``."""
    found: dict[str, str] = {}
    for word, following in itertools.pairwise([*arguments, ""]):
        if word.startswith("--"):
            name, is_joined, value = word[2:].partition("=")
            found[name.partition(".")[0].replace("_", "-")] = value if is_joined else following
    return found


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
