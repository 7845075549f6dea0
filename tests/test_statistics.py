import itertools
import math

import pytest

from swaa.statistics import mcnemar, retention, wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # From Wilson's formula as published tables give it.
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson(right, count, low, high):
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_refuses_the_impossible():
    for right, count in ((1, 0), (-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="expected 0 to all"):
            wilson(right, count)


def test_mcnemar_counts_every_way_to_split_the_discordant_pairs():
    for won, lost in itertools.product(range(6), repeat=2):
        ours = [True] * won + [False] * lost + [True, False]
        theirs = [False] * won + [True] * lost + [True, False]
        ways = list(itertools.product((0, 1), repeat=won + lost))
        far = abs(won - lost)
        extreme = sum(abs(2 * sum(way) - won - lost) >= far for way in ways)
        assert mcnemar(ours, theirs) == pytest.approx(extreme / len(ways))


def test_mcnemar_needs_pairs():
    assert mcnemar([], []) == 1
    with pytest.raises(ValueError, match="expected pairs"):
        mcnemar([True], [])


def test_retention():
    assert retention(0.45, 0.9) == 50
    assert retention(0.45, 0.0) is None
    assert math.isclose(retention(1.0, 0.8), 125)
