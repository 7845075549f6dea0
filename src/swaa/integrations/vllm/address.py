"""Where a `vllm serve` will listen, according to its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swaa.integrations import flags
from swaa.integrations.address import EVERYWHERE, HERE, Address

_FLAGS = ("host", "port", "uds", "ssl-certfile", "headless", "config", "additional-config")
"""Flags that say where a server answers and what it is asked for."""


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
    """Each flag's value among the arguments of ``vllm serve``.

    Raises:
        ValueError: for a ``--config`` file that cannot be read, and for a flag of interest that is
            cut short.
    """
    return flags.read_flags(arguments, interest=_FLAGS, engine="vLLM")
