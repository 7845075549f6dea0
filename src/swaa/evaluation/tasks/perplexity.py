"""`perplexity`: how well running text is predicted inside the window, beyond it, and as an answer.

A text of ``length`` tokens goes through the model once. Its last tokens count as generated, so that
full decode and the dense tail affect them as they affect an answer; all earlier tokens count as
prompt. No chat template, no question.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swaa.evaluation.prompt import Prompt, plain_ids
from swaa.evaluation.sample import Sample
from swaa.evaluation.tasks.generated import GeneratedTask, no_argument
from swaa.evaluation.tasks.haystack import grow, most_that_fit, read_filler

BLOCK = 64
"""Tokens per block; a sample's record holds each block's summed likelihoods."""

LONGEST_ANSWER = 256
"""Most tokens at the end that count as generated; a quarter of a short text."""


@dataclass(frozen=True)
class Perplexity(GeneratedTask):
    """Prediction of the shipped text."""

    name: str = "perplexity"

    def sample(
        self, prompt: Prompt, name: str, length: int, index: int, chance: random.Random
    ) -> Sample:
        """One text.

        Raises:
            ValueError: for a length under two blocks, or beyond the shipped text, of which a
                repetition would only be copied.
        """
        if length < 2 * BLOCK:
            raise ValueError(f"perplexity of {length} tokens; expected at least {2 * BLOCK}")
        text = read_filler()

        def missing(text: str) -> int:
            return length - len(encode(prompt, text))

        if (lacking := missing(text)) > 0:
            raise ValueError(
                f"perplexity of {length} tokens would repeat the text that ships with swaa, which"
                f" has {length - lacking} tokens"
            )
        start = text.index(". ", chance.randrange(len(text) // 2)) + 2
        # No tokenizer needs more than ten letters per token.
        rest = (text[start:] + text)[: 10 * length]
        letters = most_that_fit(len(rest), lambda fit: missing(rest[:fit]))
        context = grow(rest[:letters], rest[letters : letters + 2000], missing)
        return Sample(
            id=name,
            task=self.name,
            length=length,
            context=context,
            answers=(),
            max_new_tokens=0,
        )


def answer_from(length: int) -> int:
    """Position of the first token that counts as generated, which begins a block."""
    return (length - min(LONGEST_ANSWER, length // 4)) // BLOCK * BLOCK


def encode(prompt: Prompt, text: str) -> list[int]:
    """Token ids of the text alone."""
    return plain_ids(prompt.tokenizer, text)


def split(
    samples: Sequence[Mapping[str, Any]], *, window: int | None, sink_tokens: int
) -> dict[str, float | None]:
    """Mean negative log-likelihood by position, in nats per token.

    Args:
        samples: with ``blocks``: sum and count of each :data:`BLOCK` tokens, and ``answer_from``.
        window: keys a sliding row sees, itself included; ``None``: all.
        sink_tokens: first tokens that every row sees.

    Returns:
        ``inside``: what window and sinks cover, ``beyond``: the rest of the prompt, and ``answer``;
        ``None`` where there is no such position. Blocks that cross a boundary are left out.
    """
    sums = {name: [0.0, 0] for name in ("inside", "beyond", "answer")}
    for sample in samples:
        seen = sample["length"] if window is None else window + sink_tokens
        for place, (total, count) in enumerate(sample["blocks"]):
            first = place * BLOCK
            if first >= sample["answer_from"]:
                name = "answer"
            elif first >= seen:
                name = "beyond"
            elif first + BLOCK <= seen:
                name = "inside"
            else:
                continue
            sums[name][0] += total
            sums[name][1] += count
    return {name: total / count if count else None for name, (total, count) in sums.items()}


def make(argument: str | None) -> list[Perplexity]:
    """The task as typed."""
    no_argument("perplexity", argument)
    return [Perplexity()]
