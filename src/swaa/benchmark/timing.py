"""Time GPU work by CUDA events, and measure the same GPU's ceilings in the same run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from swaa.statistics import Percentiles, percentiles

Work = Callable[[], object]


def time_work(work: Work, *, seconds: float = 0.5, samples: int = 10) -> Percentiles:
    """Seconds of work as launched, for kernels that run far longer than a launch takes.

    Args:
        work: launches it.
        seconds: about how long to measure.
        samples: fewest timings to take.
    """
    work()
    _run(work, 1)
    count = max(samples, int(seconds / _run(work, 1)[0]))
    return percentiles(_run(work, count))


def time_graph(works: Sequence[Work], *, seconds: float = 0.3) -> Percentiles:
    """Seconds of short work without its launches, replayed from a CUDA graph.

    Args:
        works: the same work on different inputs, run one after another. Together the inputs must
            exceed the L2 cache several times; otherwise the cache is measured.
        seconds: about how long to measure.
    """
    for work in works:
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    times = time_work(graph.replay, seconds=seconds, samples=20)
    return Percentiles(*(t / len(works) for t in times))


def copy_rate() -> float:
    """Bytes per second of a large device copy; read and write both count."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    times = time_work(lambda: target.copy_(source))
    return 2 * source.numel() * source.element_size() / times.p50


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP per second of a product of two 8192 x 8192 matrices of random numbers."""
    a, b = torch.randn((2, 8192, 8192), dtype=dtype, device="cuda").unbind()
    return 2 * 8192**3 / time_work(lambda: a @ b).p50


def _run(work: Work, count: int) -> list[float]:
    """Seconds of each of several runs, launched ahead so that launching is not measured."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]
