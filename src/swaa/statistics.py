"""Confidence of a share, whether two settings differ on the same samples, percentiles of times."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

Z95 = 1.959963984540054
"""Standard deviations that hold 95 % of a normal distribution."""


class Interval(NamedTuple):
    """Bounds of a share, 0 to 1."""

    low: float
    high: float


def wilson(right: float, count: int) -> Interval:
    """The 95 % confidence interval of a share by Wilson's score.

    >>> low, high = wilson(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)

    Args:
        right: correctly answered samples; where answers may be partly right, the sum of their
            scores, for which the interval is wider than necessary.
        count: all samples.

    Raises:
        ValueError: for impossible numbers.
    """
    if not 0 <= right <= count or count < 1:
        raise ValueError(f"{right} right of {count}; expected 0 to all of at least one sample")
    share, square = right / count, Z95**2
    middle = share + square / (2 * count)
    spread = Z95 * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    scale = 1 + square / count
    # Rounding must not move the bounds past the ends.
    low = 0.0 if right == 0 else (middle - spread) / scale
    high = 1.0 if right == count else (middle + spread) / scale
    return Interval(low, high)


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """The exact two-sided p value of McNemar's test: how likely so uneven a split is by chance.

    Only samples that exactly one of the settings answers rightly count.

    >>> mcnemar([True] * 6 + [False], [False] * 6 + [False])
    0.03125

    Args:
        ours: whether each sample was answered rightly.
        theirs: the same for another setting, sample by sample.

    Raises:
        ValueError: for sequences of different lengths.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} samples; expected pairs")
    won = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    fewer, discordant = min(won, lost), won + lost
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**discordant)


def retention(ours: float, theirs: float) -> float | None:
    """Our share as a percentage of another, such as full attention's; ``None``: the other is 0.

    >>> retention(0.6, 0.8)
    75.0
    """
    return None if theirs == 0 else round(100 * ours / theirs, 10)


class Percentiles(NamedTuple):
    """20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float


def percentiles(values: Sequence[float]) -> Percentiles:
    """Percentiles of at least one value, by linear interpolation between values."""
    if len(values) == 1:
        return Percentiles(*[values[0]] * 3)
    p20, _, _, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return Percentiles(p20, statistics.median(values), p80)
