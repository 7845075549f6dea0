"""Where an OpenAI-compatible server listens, and how it is addressed."""

from __future__ import annotations

import ipaddress
import urllib.parse
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where to ask.

    Attributes:
        url: base of the API, such as ``http://127.0.0.1:8000/v1``.
        model: its name on the server.
        key: sent as bearer token; ``None``: none.
        key_over_http: whether the key may go to another machine unencrypted.
        timeout_s: longest wait for a piece of an answer (seconds).

    Raises:
        ValueError: for anything but an HTTP address; for a key that would go to another machine
            over plain HTTP, unless that is allowed.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_over_http: bool = False
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"the endpoint is {self.url!r}; expected a URL such as http://127.0.0.1:8000/v1"
            )
        exposed = self.key and parts.scheme == "http" and not _is_here(parts.hostname)
        if exposed and not self.key_over_http:
            raise ValueError(
                f"the key would go to {parts.hostname} over plain HTTP, where others can read it:"
                " give an https URL, name an unset variable by --key-variable (or"
                " --judge-key-variable) to send none, or allow it with --key-over-http"
            )

    def resource(self, name: str) -> str:
        """URL of one of the API's resources, such as ``completions``."""
        return f"{self.url.rstrip('/')}/{name}"

    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        headers = {"Content-Type": "application/json"}
        return headers | ({"Authorization": f"Bearer {self.key}"} if self.key else {})


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
