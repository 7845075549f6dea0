"""Where a server of a serving engine listens, and whether it answers there."""

from __future__ import annotations

import contextlib
import http
import http.client
import socket
import ssl
from dataclasses import dataclass

TIMEOUT_S = 5.0

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
