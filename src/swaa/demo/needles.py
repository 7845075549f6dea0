"""Needles: a fact hidden in a long text, a question about it, and a check of the answer."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from swaa.evaluation.prompt import plain_ids
from swaa.evaluation.tasks.facts import pick_names, pick_numbers, sentence, share_found
from swaa.evaluation.tasks.haystack import read_filler

DEEPEST = 0.7
"""Needles lie in the first 70 % of the text, out of reach of a window of a quarter of it."""

_SENTENCE_END = re.compile(r"[.!?]\"?\s")
_SPACE = re.compile(r"\s")


@dataclass(frozen=True, kw_only=True)
class Needle:
    """One document with a hidden fact.

    Attributes:
        document: running text, the fact inside.
        question: what to ask after the document.
        digits: what a right answer contains.
        depth: where the fact lies, 0 at the text's start, 1 at its end.
    """

    document: str
    question: str
    digits: str
    depth: float

    def is_answered(self, text: str) -> bool:
        """Whether a reply contains the digits, whatever else it says."""
        return share_found([self.digits], text).value == 1.0


def make_needles(
    tokenizer: PreTrainedTokenizerBase, *, tokens: int, count: int, seed: int
) -> tuple[Needle, ...]:
    """Documents with one needle each; the same arguments give the same documents.

    The documents are spread over the shipped text, the needles over depths from 0 to
    :data:`DEEPEST`.

    Args:
        tokenizer: counts the documents' tokens.
        tokens: length of a document, needle included (tokens).
        count: number of documents.
        seed: of names and digits.

    Raises:
        ValueError: when ``tokens`` leaves no room for a needle, or exceeds the shipped text.
    """
    ids = plain_ids(tokenizer, read_filler())
    if not 64 <= tokens <= len(ids):
        raise ValueError(f"needle documents of {tokens} tokens; expected 64 to {len(ids):,}")
    chance = random.Random(seed)
    needles = []
    for index in range(count):
        (name,), (digits,) = pick_names(chance, 1), pick_numbers(chance, 1)
        fact = sentence(name, digits)
        length = tokens - len(plain_ids(tokenizer, f" {fact}"))
        first = index * (len(ids) - length) // max(1, count - 1)
        text = decode(tokenizer, ids[first : first + length])
        depth = DEEPEST * (index + 0.5) / count
        needles.append(
            Needle(
                document=_insert(text, fact, depth),
                question=f"What is the special magic number for {name} mentioned in the text?",
                digits=digits,
                depth=depth,
            )
        )
    return tuple(needles)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of token ids."""
    text = tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


def _insert(text: str, fact: str, depth: float) -> str:
    """Put the fact after the sentence that ends just past ``depth``, else between two words."""
    wanted = int(depth * len(text))
    near = wanted + len(text) // 20
    end = _SENTENCE_END.search(text, wanted, near) or _SPACE.search(text, wanted)
    place = end.end() if end else wanted
    return f"{text[:place]}{fact} {text[place:]}"
