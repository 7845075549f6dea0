"""What requests of the long-prompt benchmark have in common, whichever engine serves them."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Any


def random_prompt(number: int, tokens: int, vocabulary: int) -> list[int]:
    """Random token ids that no request of another number shares."""
    rng = random.Random(number)
    return [rng.randrange(vocabulary) for _ in range(tokens)]


def timings(times: Sequence[float], begin: float) -> dict[str, Any]:
    """Seconds to the first token, and from token to token: their mean and median.

    Args:
        times: when each token came (seconds of a clock).
        begin: when the request was ready to be served.
    """
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return {
        "first": times[0] - begin,
        "each": (times[-1] - times[0]) / max(1, len(steps)),
        "each_p50": statistics.median(steps) if steps else None,
    }
