"""Where a `sglang serve` will listen, according to its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swaa.integrations import flags
from swaa.integrations.address import EVERYWHERE, HERE, Address

PORT = 30_000
"""Where SGLang listens unless told otherwise."""
OWN = ("json-model-override-args", "radix-cache-backend")
"""Flags that ``swaa serve`` sets itself."""
_FLAGS = (
    *("host", "port", "ssl-certfile", "config", "attention-backend", "device", *OWN),
    *("prefill-attention-backend", "decode-attention-backend", "cuda-graph-backend-prefill"),
)


def find_address(arguments: Sequence[str]) -> Address:
    """Where ``sglang serve`` with these arguments answers.

    Args:
        arguments: of ``sglang serve``; a ``--config`` file among them is also read.

    Raises:
        ValueError: for a flag that ``swaa serve`` sets itself; for a file that cannot be read; for
            a flag cut short, or a port that is not known before the server starts.
    """
    values = read_flags(arguments)
    for name in OWN:
        if name in values:
            raise ValueError(
                f"--{name} cannot be combined with 'swaa serve'; run 'sglang serve' with your own,"
                " as docs/how-to/serve-sglang.md says"
            )
    host, port = values.get("host") or HERE, str(values.get("port", PORT))
    if not port.isdecimal() or int(port) == 0:
        raise ValueError(f"--port {port}: expected a number above 0")
    return Address(
        host=HERE if host in EVERYWHERE else host,
        port=int(port),
        tls=bool(values.get("ssl-certfile")),
    )


def read_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Each flag's value among the arguments of ``sglang serve``.

    Raises:
        ValueError: for a ``--config`` file that cannot be read, and for a flag of interest that is
            cut short.
    """
    return flags.read_flags(arguments, interest=_FLAGS, engine="SGLang")
