"""The percentiles of every time in results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Percentiles(NamedTuple):
    """20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float


def percentiles(values: Sequence[float]) -> Percentiles:
    """Of at least one value; between two values the line that joins them counts."""
    if len(values) == 1:
        return Percentiles(*[values[0]] * 3)
    p20, _, _, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return Percentiles(p20, statistics.median(values), p80)
