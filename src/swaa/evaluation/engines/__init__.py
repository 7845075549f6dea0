"""The interface of what answers prompts: a model in this process, or an endpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt.

    Attributes:
        id: of the sample.
        ids: the whole prompt, chat template included.
        content: the user's words alone, for endpoints that add the template.
        max_new_tokens: longest output (tokens).
    """

    id: str
    ids: tuple[int, ...]
    content: str
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One output.

    Attributes:
        id: of the sample.
        output: what was generated, without special tokens except those around thoughts.
        first_token_s: seconds from sending the prompt, or its batch, to its first token;
            ``None``: not measured.
        new_tokens: tokens generated, including the one that ends the answer; ``None``: unknown.
        truncated: the output ended because it reached the longest allowed.
        ids: token ids generated, including the one that ends the answer; empty: unknown.
    """

    id: str
    output: str
    first_token_s: float | None
    new_tokens: int | None
    truncated: bool
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn at random.

    The same seed and prompts in the same batches give the same answers, whatever was drawn before.

    Attributes:
        temperature: of the distribution that tokens are drawn from; above 0.
        seed: of the draws.

    Raises:
        ValueError: for a temperature of 0 or less.
    """

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected more than 0 to draw")

    def seed_for(self, *names: str) -> int:
        """The seed of one draw, 31 bits."""
        text = "\x00".join((str(self.seed), *names))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


class Engine(Protocol):
    """Answers prompts, greedily unless it was made with a :class:`Sampling`."""

    def describe(self) -> dict[str, Any]:
        """What distinguishes runs with this engine from runs with another."""
        ...

    def answer(self, batches: Sequence[Sequence[Request]]) -> Iterator[Reply]:
        """Answer all prompts, those of a batch at once; replies come as they are ready."""
        ...


def make_batches(requests: Sequence[Request], size: int) -> list[tuple[Request, ...]]:
    """Batches of prompts of similar lengths, so that little of a batch is padding.

    Which prompts share a batch depends only on all of them and on ``size``, never on what is done
    already, because a batch can change the last digits of its members' logits.

    >>> requests = [
    ...     Request(id=name, ids=(0,) * tokens, content="", max_new_tokens=1)
    ...     for name, tokens in (("a", 5), ("b", 90), ("c", 6))
    ... ]
    >>> [[request.id for request in batch] for batch in make_batches(requests, 2)]
    [['b', 'c'], ['a']]

    Args:
        requests: all prompts of a run.
        size: prompts in a batch.
    """
    # Longest first: a lack of memory shows at once.
    ordered = sorted(requests, key=lambda request: -len(request.ids))
    return [tuple(ordered[first : first + size]) for first in range(0, len(ordered), size)]
