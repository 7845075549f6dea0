"""`continuation`: running text to tune on; there is no question, the next tokens are predicted.

A text of ``length`` tokens ends in :data:`CONTINUED` tokens that count as generated. Of these only
the rows that look far count (:func:`swaa.selection.batches.far_rows`): for others a window is
enough, and every recipe would look the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swaa.evaluation.prompt import Prompt, plain_ids
from swaa.evaluation.tasks.haystack import read_filler
from swaa.selection.batches import TeacherForced

NAME = "continuation"
"""The task's name, in commands and results."""

CONTINUED = 128
"""Tokens at the end of each text that count as generated."""

SHORTEST = 2 * CONTINUED
"""Fewest tokens of a text."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Running texts in two parts that share no predicted token.

    Attributes:
        calibration: what signals and search see.
        held_out: what the reported score is measured on.
    """

    calibration: tuple[TeacherForced, ...]
    held_out: tuple[TeacherForced, ...]

    @property
    def length(self) -> int:
        """Tokens of each text."""
        first = (self.calibration or self.held_out)[0]
        return len(first.prompt) + len(first.answer)

    def describe(self) -> dict[str, Any]:
        """What distinguishes these texts."""
        return {"task": NAME, "version": 1, "texts": [text.id for text in self.calibration]}


def make_texts(prompt: Prompt, *, length: int, calibration: int, held_out: int, seed: int) -> Texts:
    """Texts from the shipped novel, which end at places spread evenly over it.

    Args:
        prompt: encodes.
        length: tokens of each text.
        calibration: texts to tune on.
        held_out: texts to report on.
        seed: assigns the places to the two parts.

    Raises:
        ValueError: for lengths that the novel cannot give without repeating itself, and for more
            texts than there are places.
    """
    ids = plain_ids(prompt.tokenizer, read_filler())
    count = calibration + held_out
    step = len(ids) // count
    if not SHORTEST <= length <= len(ids) or step < CONTINUED:
        raise ValueError(
            f"{NAME}: {count} texts of {length} tokens; the novel's {len(ids):,} tokens give at"
            f" most {len(ids) // CONTINUED}, of {SHORTEST} to {len(ids)} tokens each"
        )
    places = [step * (index + 1) for index in range(count)]
    random.Random(f"swaa tune {NAME} {seed}").shuffle(places)
    texts = [_text(ids, end, length) for end in places]
    return Texts(calibration=tuple(texts[:calibration]), held_out=tuple(texts[calibration:]))


def kept_scores(kl: Sequence[float]) -> list[float]:
    """What each text keeps, 0 to 1: how likely full attention's own continuation is, per token.

    >>> kept_scores([0.0, 0.05])
    [1.0, 0.9512]

    Args:
        kl: divergence from full attention (nats per token).
    """
    # Rounding can make the divergence of equal distributions slightly negative.
    return [round(math.exp(-max(0.0, value)), 4) for value in kl]


def _text(ids: Sequence[int], end: int, length: int) -> TeacherForced:
    # Before the novel's beginning comes its end: the text wraps, and never repeats.
    begin = end - length
    tokens = (*ids[begin:], *ids[:end]) if begin < 0 else ids[begin:end]
    return TeacherForced(
        f"{NAME}-{length}-{end}",
        tuple(tokens[:-CONTINUED]),
        tuple(tokens[-CONTINUED:]),
        far=True,
    )
