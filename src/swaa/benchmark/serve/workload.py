"""What a server is asked: random prompts of exact lengths, and when they arrive."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests of one size, or of sizes that are spread.

    Attributes:
        input_tokens: of each prompt, exactly; with ``shortest_tokens`` of the longest.
        output_tokens: generated for each, exactly, where the server obeys ``ignore_eos``.
        requests: how many.
        rate: requests per second, arriving at random (a Poisson process); ``None``: all at once.
        concurrency: most requests in progress; further ones wait in the client. ``None``: no limit.
        shortest_tokens: of the shortest prompt; the logarithms of the lengths are drawn evenly
            between it and ``input_tokens``. ``None``: all have ``input_tokens``.
        checked: requests, spread over all, that are asked once more after the load, one after
            another: their answers must be those given under the load.
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
    shortest_tokens: int | None = None
    checked: int = 0
    vocabulary: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"input_tokens": 1, "output_tokens": 1, "requests": 1, "vocabulary": 10}
        least |= {"concurrency": 1, "shortest_tokens": 1, "checked": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} is {value}; expected at least {bound}")
        for name, most in (("shortest_tokens", "input_tokens"), ("checked", "requests")):
            value, bound = getattr(self, name), getattr(self, most)
            if value is not None and value > bound:
                raise ValueError(f"{name} is {value}; expected at most {most}, {bound}")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"rate is {self.rate}; expected requests a second, above 0")

    @property
    def longest_request(self) -> int:
        """Tokens of the longest prompt and its answer."""
        return self.input_tokens + self.output_tokens

    def lengths(self) -> list[int]:
        """Tokens of each request's prompt."""
        if self.shortest_tokens is None:
            return [self.input_tokens] * self.requests
        numbers = random.Random(f"lengths {self.seed}")
        ratio = self.input_tokens / self.shortest_tokens
        shares = [numbers.random() for _ in range(self.requests)]
        return [round(self.shortest_tokens * ratio**share) for share in shares]

    def prompts(self, nonce: str = "") -> Iterator[list[int]]:
        """Token ids of the warm-up's prompt, the longest, then of every request's, all different.

        Args:
            nonce: gives other prompts for the same seed, for a server whose prefix cache may hold
                the usual ones.
        """
        numbers = random.Random(f"{self.seed} {nonce}")
        ids = range(self.vocabulary // 10, self.vocabulary)
        for length in (self.input_tokens, *self.lengths()):
            yield numbers.choices(ids, k=length)

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
    "mixed": Workload(
        input_tokens=64_000, shortest_tokens=1_000, output_tokens=256, requests=64, rate=1.0
    ),
    "short": Workload(input_tokens=4_096, output_tokens=128, requests=32),
    "smoke": Workload(input_tokens=256, output_tokens=16, requests=4),
}
"""Workloads by name; ``paper`` is the one in SWAA (arXiv 2512.10411, Table 5)."""
