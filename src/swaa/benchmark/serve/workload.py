"""What a server is asked: random prompts of an exact length, and when they arrive."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests of one size.

    Attributes:
        input_tokens: of each prompt, exactly.
        output_tokens: generated for each, exactly, where the server obeys ``ignore_eos``.
        requests: how many.
        rate: requests per second, arriving at random (a Poisson process); ``None``: all at once.
        concurrency: most requests in progress; further ones wait in the client. ``None``: no limit.
        vocabulary: token ids are drawn below it, without the first tenth, where special tokens
            usually are.
        seed: of prompts and arrivals.

    Raises:
        ValueError: for a number out of range.
    """

    input_tokens: int
    output_tokens: int
    requests: int
    rate: float | None = None
    concurrency: int | None = None
    vocabulary: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"input_tokens": 1, "output_tokens": 1, "requests": 1, "vocabulary": 10}
        if self.concurrency is not None:
            least["concurrency"] = 1
        for name, bound in least.items():
            value = getattr(self, name)
            if value < bound:
                raise ValueError(f"{name} is {value}; expected at least {bound}")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"rate is {self.rate}; expected requests a second, above 0")

    def prompts(self, nonce: str = "") -> Iterator[list[int]]:
        """Token ids of the warm-up's prompt, then of every request's, all different.

        Args:
            nonce: gives other prompts for the same seed, for a server whose prefix cache may hold
                the usual ones.
        """
        numbers = random.Random(f"{self.seed} {nonce}")
        ids = range(self.vocabulary // 10, self.vocabulary)
        for _ in range(self.requests + 1):
            yield numbers.choices(ids, k=self.input_tokens)

    def arrivals(self) -> list[float]:
        """Seconds from the start at which each request arrives."""
        if self.rate is None:
            return [0.0] * self.requests
        numbers = random.Random(f"arrivals {self.seed}")
        gaps = (numbers.expovariate(self.rate) for _ in range(self.requests - 1))
        return list(itertools.accumulate(gaps, initial=0.0))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


PRESETS = {
    "paper": Workload(input_tokens=128_000, output_tokens=512, requests=100),
    "single": Workload(input_tokens=128_000, output_tokens=512, requests=5, concurrency=1),
    "long": Workload(input_tokens=32_768, output_tokens=256, requests=32),
    "short": Workload(input_tokens=4_096, output_tokens=128, requests=32),
    "smoke": Workload(input_tokens=256, output_tokens=16, requests=4),
}
"""Workloads by name; ``paper`` is the one in SWAA (arXiv 2512.10411, Table 5)."""
