"""Send a workload to a server, each request when it is due, and summarise the answers."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from swaa.benchmark.serve.client import TOKENS, Timing, encode_request, request
from swaa.benchmark.serve.workload import Workload
from swaa.http.address import Address
from swaa.statistics import percentiles


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a workload did.

    Attributes:
        workload: what was sent.
        started: when the first request was due, by ``time.perf_counter`` (seconds).
        timings: of the requests, in their order.
        nonce: of the prompts, see :meth:`Workload.prompts`.
    """

    workload: Workload
    started: float
    timings: tuple[Timing, ...]
    nonce: str = ""

    @property
    def finished(self) -> list[Timing]:
        """Requests that were answered."""
        return [timing for timing in self.timings if timing.error is None]

    @property
    def failures(self) -> dict[str, int]:
        """How many requests failed, by reason, the most frequent first."""
        reasons = Counter(t.error for t in self.timings if t.error is not None)
        return dict(reasons.most_common())


def run_load(
    address: Address,
    workload: Workload,
    *,
    nonce: str = "",
    progress: Callable[[int], None] | None = None,
) -> Load:
    """Warm the server up with one request, then send the workload.

    Args:
        address: of the server.
        workload: what to send.
        nonce: see :meth:`Workload.prompts`.
        progress: called with the number of requests that have ended.

    Raises:
        ConnectionError: when the warm-up request fails, with the reason.
    """
    extra = TOKENS if workload.checked else {}
    bodies = [encode_request(address, ids, workload, extra) for ids in workload.prompts(nonce)]
    first = request(address, bodies.pop(0), input_tokens=workload.input_tokens)
    if first.error is not None:
        raise ConnectionError(f"{address.url}: the first request failed: {first.error}")
    timings: list[Timing | None] = [None] * workload.requests
    slots = threading.Semaphore(workload.concurrency or workload.requests)
    ended = threading.Semaphore(0)
    # Daemon threads: whoever interrupts the load must not wait for answers that may never come.
    threads = [
        threading.Thread(
            target=_send, args=(address, body, length, index, timings, slots, ended), daemon=True
        )
        for index, (body, length) in enumerate(zip(bodies, workload.lengths(), strict=True))
    ]
    started = time.perf_counter()
    watcher = threading.Thread(target=_start, args=(threads, workload.arrivals(), slots, started))
    watcher.daemon = True
    watcher.start()
    for done in range(1, workload.requests + 1):
        ended.acquire()
        if progress is not None:
            progress(done)
    sent = tuple(timing for timing in timings if timing is not None)
    return Load(workload=workload, started=started, timings=sent, nonce=nonce)


def _start(
    threads: Sequence[threading.Thread],
    arrivals: Sequence[float],
    slots: threading.Semaphore,
    started: float,
) -> None:
    for thread, due in zip(threads, arrivals, strict=True):
        time.sleep(max(0.0, started + due - time.perf_counter()))
        slots.acquire()
        thread.start()


def _send(
    address: Address,
    body: bytes,
    length: int,
    index: int,
    timings: list[Timing | None],
    slots: threading.Semaphore,
    ended: threading.Semaphore,
) -> None:
    try:
        timings[index] = request(address, body, input_tokens=length)
    except BaseException as error:
        timings[index] = Timing(sent=time.perf_counter(), error=f"{type(error).__name__}: {error}")
        raise
    finally:
        slots.release()
        ended.release()


def summarize(load: Load) -> list[dict[str, Any]]:
    """One row for the requests as a whole, then one for each time that was measured.

    Args:
        load: with at least one answer.
    """
    finished, workload = load.finished, load.workload
    ends = [timing.pieces[-1] for timing in finished]
    seconds = max(ends) - load.started
    new_tokens = sum(timing.new_tokens for timing in finished)
    lengths = zip(load.timings, workload.lengths(), strict=True)
    read_tokens = sum(length for timing, length in lengths if timing.error is None)
    whole = {
        "metric": "requests",
        "requests": workload.requests,
        "finished": len(finished),
        "failed": workload.requests - len(finished),
        "failures": load.failures,
        "short": sum(timing.new_tokens < workload.output_tokens for timing in finished),
        "seconds": seconds,
        "requests_per_s": len(finished) / seconds,
        "output_tokens_per_s": new_tokens / seconds,
        "total_tokens_per_s": (new_tokens + read_tokens) / seconds,
    }
    gaps = [b - a for t in finished for a, b in itertools.pairwise(t.pieces)]
    times = {
        "ttft_s": [timing.first_token_s for timing in finished],
        "tpot_s": [t.token_s for t in finished if t.token_s is not None],
        "itl_s": gaps,
        "latency_s": [timing.latency_s for timing in finished],
    }
    return [whole, *(_row(name, values) for name, values in times.items() if values)]


def samples(load: Load) -> list[dict[str, Any]]:
    """One JSON object per request: when it was sent, how long it took, why it failed."""
    found = []
    sent = zip(load.timings, load.workload.lengths(), strict=True)
    for index, (timing, length) in enumerate(sent):
        sample: dict[str, Any] = {"id": index, "input_tokens": length}
        sample["sent_s"] = round(timing.sent - load.started, 6)
        if timing.error is None:
            token_s = timing.token_s
            sample |= {
                "ttft_s": round(timing.first_token_s, 6),
                "tpot_s": None if token_s is None else round(token_s, 6),
                "latency_s": round(timing.latency_s, 6),
                "new_tokens": timing.new_tokens,
                "pieces": len(timing.pieces),
            }
        found.append(sample | {"error": timing.error})
    return found


def _row(metric: str, seconds: Sequence[float]) -> dict[str, Any]:
    row = {"metric": metric, **percentiles(seconds)._asdict(), "p99": _percentile_99(seconds)}
    return row | {"mean": statistics.fmean(seconds), "count": len(seconds)}


def _percentile_99(values: Sequence[float]) -> float:
    return (
        statistics.quantiles(values, n=100, method="inclusive")[98]
        if len(values) > 1
        else values[0]
    )
