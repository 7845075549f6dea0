"""`periodic`: patterns that measure nothing: every n-th layer, and blocks. The paper's choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def patterns(able: Sequence[int], share: Fraction) -> dict[str, tuple[int, ...]]:
    """Each pattern that keeps a share of the layers, by the name of its rule.

    Blocks round the share to whole layers; steps are whole numbers, so they may keep fewer layers.

    >>> patterns(range(8), Fraction(1, 2))["odd"], patterns(range(8), Fraction(1, 4))["every:4+1"]
    ((1, 3, 5, 7), (1, 5))

    Args:
        able: layers that can slide.
        share: of the layers to keep, above 0.

    Returns:
        ``odd`` and ``even``, or each ``every:n+offset``, and the blocks ``first:share``,
        ``middle:share`` and ``last:share``.
    """
    step = math.ceil(1 / share)
    found: dict[str, tuple[int, ...]] = {}
    for offset in range(step):
        name = f"every:{step}+{offset}"
        name = {"every:2+0": "even", "every:2+1": "odd", "every:1+0": "every"}.get(name, name)
        found[name] = tuple(able[offset::step])
    count = math.floor(share * len(able) + Fraction(1, 2))
    middle = (len(able) - count) // 2
    for name, first in (("first", 0), ("middle", middle), ("last", len(able) - count)):
        found[f"{name}:{share}"] = tuple(able[first : first + count])
    return found


def blocks(able: Sequence[int], count: int, *, step: int = 1) -> list[tuple[int, ...]]:
    """Contiguous blocks of ``count`` layers; one begins at each ``step``-th layer.

    >>> blocks(range(6), 4)
    [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5)]
    """
    offsets = list(range(0, len(able) - count + 1, max(1, step)))
    if offsets and offsets[-1] != len(able) - count:
        offsets.append(len(able) - count)
    return [tuple(able[first : first + count]) for first in offsets]
