"""What vLLM says of its engine while a load runs: requests, KV cache, preemptions."""

from __future__ import annotations

import contextlib
import http.client
import re
import statistics
import threading
from collections.abc import Iterator
from typing import Any

from swaa.benchmark.serve.client import connection_to
from swaa.http.address import Address

EVERY_S = 0.5
"""Between two looks (seconds)."""

_LINE = re.compile(r"^vllm:(\w+)(?:\{.*\})? ([-+.\w]+)$", re.MULTILINE)


class Watch:
    """What was seen; see :func:`watching`."""

    def __init__(self) -> None:
        self._seen: list[dict[str, float]] = []

    def row(self) -> dict[str, Any] | None:
        """The greatest and the mean share of the KV cache in use, requests, and preemptions.

        ``None`` for a server that does not tell.
        """
        seen = [one for one in self._seen if "kv_cache_usage_perc" in one]
        if not seen:
            return None
        used = [one["kv_cache_usage_perc"] for one in seen]
        ends = [one.get("num_preemptions_total", 0.0) for one in (seen[0], seen[-1])]
        return {
            "metric": "engine",
            "kv_used_max": max(used),
            "kv_used_mean": statistics.fmean(used),
            "running_max": int(max(one.get("num_requests_running", 0.0) for one in seen)),
            "waiting_max": int(max(one.get("num_requests_waiting", 0.0) for one in seen)),
            "preemptions": int(ends[1] - ends[0]),
        }

    def look(self, address: Address) -> None:
        """Read the server's metrics once; nothing is seen where it has none."""
        connection = connection_to(address)
        connection.timeout = 5.0
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            if answer.status == 200:
                self._seen.append(totals(answer.read().decode("utf-8", "replace")))
        connection.close()


def totals(text: str) -> dict[str, float]:
    r"""Numbers of vLLM's own metrics by name, added up over engines.

    >>> totals('vllm:num_preemptions_total{engine="0"} 2.0\nother 1\n')
    {'num_preemptions_total': 2.0}
    """
    found: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        found[name] = found.get(name, 0.0) + float(value)
    return found


@contextlib.contextmanager
def watching(address: Address) -> Iterator[Watch]:
    """Look at a server's metrics again and again as long as the block runs."""
    watch, ended = Watch(), threading.Event()

    def look() -> None:
        while not ended.wait(EVERY_S):
            watch.look(address)

    watch.look(address)
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
        watch.look(address)
