"""What the tasks with hidden numbers share: names, numbers, sentences, and their scorer."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from swaa.evaluation.sample import Score

NAMES = (
    "Lisbon", "Oslo", "Nairobi", "Kyoto", "Lima", "Geneva", "Havana", "Cairo", "Dublin",
    "Manila", "Prague", "Quito", "Riga", "Seoul", "Tunis", "Vienna", "Athens", "Bogota",
    "Dakar", "Delhi", "Florence", "Glasgow", "Hanoi", "Jakarta", "Kingston", "Leipzig",
    "Madrid", "Naples", "Ottawa", "Palermo", "Rotterdam", "Santiago", "Tbilisi", "Utrecht",
    "Valencia", "Warsaw", "Xiamen", "Yerevan", "Zagreb", "Zanzibar",
)  # fmt: skip


def pick_names(chance: random.Random, count: int) -> list[str]:
    """Different names."""
    return chance.sample(NAMES, count)


def pick_numbers(chance: random.Random, count: int) -> list[str]:
    """Different numbers of seven digits."""
    return [str(number) for number in chance.sample(range(1_000_000, 10_000_000), count)]


def sentence(name: str, number: str) -> str:
    """The fact that is hidden."""
    return f"One of the special magic numbers for {name} is: {number}."


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([part for part in (", ".join(words[:-1]), words[-1]) if part])


def share_found(answers: Sequence[str], answer: str | None) -> Score:
    """The share of ``answers`` that an answer contains, each as a whole word.

    >>> share_found(["12", "34"], "It is 12 and 345.").value
    0.5

    Args:
        answers: what is asked for.
        answer: what the model said; ``None``: nothing.
    """
    if not answer:
        return Score(0.0, answered=False)
    # Models write 1,234,567 for 1234567.
    text = re.sub(r"(?<=\d),(?=\d{3})", "", answer)
    found = [re.search(rf"(?<!\w){re.escape(item)}(?!\w)", text) for item in answers]
    return Score(sum(one is not None for one in found) / len(answers))
