"""Time what a user waits for: seconds on the host's clock, tokens by marks on the device."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], object]


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_calls(work: Work) -> float:
    """Median seconds of three runs, after one run to warm up."""
    work()
    return statistics.median(Marks.around(work, 3))


class Marks:
    """Points in the device's work, or in the host's where there is no GPU."""

    def __init__(self) -> None:
        self._marks: list[Any] = []

    @classmethod
    def around(cls, work: Work, repeats: int) -> list[float]:
        """Seconds of each of several runs, launched one after another."""
        marks = cls()
        marks.add()
        for _ in range(repeats):
            work()
            marks.add()
        return marks.seconds()

    def add(self) -> None:
        """Mark what has been launched so far."""
        if torch.cuda.is_available():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds between one mark and the next."""
        synchronize()
        pairs = itertools.pairwise(self._marks)
        if torch.cuda.is_available():
            return [a.elapsed_time(b) / 1000 for a, b in pairs]
        return [b - a for a, b in pairs]
