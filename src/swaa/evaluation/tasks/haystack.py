"""Long texts with an exact number of tokens and with sentences hidden in them."""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Needle

_PADS = (".", " a", " -", "!", " I", " 1")
"""Last resort where no cut of the text has the wanted number of tokens."""


@dataclass(frozen=True, kw_only=True)
class Haystack:
    """A text with hidden sentences.

    Attributes:
        context: the text, with the instructions before it.
        needles: where the hidden sentences lie, in the order they were given.
    """

    context: str
    needles: tuple[Needle, ...]


@functools.cache
def read_filler() -> str:
    """The public-domain text that ships with the package, one paragraph per line."""
    raw = importlib.resources.files("swaa.demo").joinpath("persuasion.txt").read_text("utf-8")
    return "\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", raw))


@functools.cache
def _sentence_ends() -> tuple[int, ...]:
    return tuple(match.end() for match in re.finditer(r"[.!?]\"?\s", read_filler()))


def spread(index: int) -> float:
    """Depth of sample ``index``, 0 to 1: evenly spread for any number of samples.

    >>> [spread(index) for index in range(5)]
    [0.0, 0.5, 0.25, 0.75, 0.125]
    """
    depth, step = 0.0, 0.5
    while index:
        depth += step * (index & 1)
        index, step = index >> 1, step / 2
    return depth


def random_for(task: str, length: int | None, seed: int, index: int) -> random.Random:
    """Random numbers for one sample, which do not depend on the other samples made."""
    return random.Random(f"{task} {length} {seed} {index}")


def hide(
    prompt: Prompt,
    sentences: Sequence[tuple[float, str]],
    *,
    intro: str,
    question: str,
    answer_prefix: str,
    length: int,
    chance: random.Random,
) -> Haystack:
    """Hide sentences in running text so that the whole prompt has exactly ``length`` tokens.

    Args:
        prompt: frames and counts.
        sentences: each with its depth: 0 is the text's beginning, 1 its end.
        intro: words before the text.
        question: the one that will be asked.
        answer_prefix: the one that will be used.
        length: tokens of the prompt, with template, question and answer prefix.
        chance: chooses where the text begins.

    Raises:
        ValueError: when the sentences and the question alone have more tokens.
    """
    text = _Text(intro, tuple(sorted(sentences, key=lambda item: item[0])), chance)

    @functools.cache  # the search repeats texts, and nearly all of its time is counting
    def missing(context: str) -> int:
        return length - prompt.count(context, question, answer_prefix)

    room = missing(text.build(0))
    if room < 0:
        raise ValueError(
            f"a prompt of {length} tokens has no room: instructions, hidden sentences and question"
            f" take {length - room}; ask for longer prompts"
        )
    # A few steps of a secant search: letters per token hardly change along the text.
    letters, per_token, left = 0, 4.0, room
    for _ in range(8):
        letters = max(0, letters + int(left * per_token))
        left = missing(text.build(letters))
        if 0 <= left <= 8:
            break
        per_token = letters / max(1, room - left)
        left -= 4  # aim short: later, missing words are added, but none are removed
    while letters and missing(text.build(letters)) < 0:
        letters = max(0, letters - 16)
    context = grow(text.build(letters), text.after(letters), missing)
    words = (sentence for _, sentence in sentences)
    needles = tuple(locate(prompt, context, question, found, length) for found in words)
    return Haystack(context=context, needles=needles)


class _Text:
    """Filler from a random sentence on; hidden sentences go after the nearest sentence ends."""

    def __init__(
        self, intro: str, sentences: Sequence[tuple[float, str]], chance: random.Random
    ) -> None:
        self._intro = intro
        self._sentences = sentences
        self._start = chance.choice(_sentence_ends())

    def _filler(self, first: int, last: int) -> str:
        base = f"{read_filler()}\n"
        first, last = first + self._start, last + self._start
        copies = base * (last // len(base) + 1)
        return copies[first:last]

    def build(self, letters: int) -> str:
        text = self._filler(0, letters)
        ends = [0, *(match.end() for match in re.finditer(r"[.!?]\"?\s", text))]
        pieces, done = [], 0
        for depth, sentence in self._sentences:
            place = min(ends, key=lambda end: abs(end - depth * letters))
            pieces += [text[done:place].strip(" "), sentence]
            done = place
        pieces.append(text[done:].lstrip(" "))
        # The last piece keeps its end, so that added text continues it.
        body = " ".join(piece for piece in pieces[:-1] if piece)
        return f"{self._intro}\n\n{body} {pieces[-1]}" if body else f"{self._intro}\n\n{pieces[-1]}"

    def after(self, letters: int) -> str:
        return self._filler(letters, letters + 2000)


def grow(context: str, more: str, missing: Callable[[str], int]) -> str:
    """Add words of ``more``, then letters, until nothing is missing.

    Args:
        context: a text that is too short, but by less than the length of ``more``.
        more: running text.
        missing: the tokens that a context lacks; negative: it is too long.

    Raises:
        ValueError: when no cut of the text has the wanted number of tokens.
    """
    words = re.findall(r"\s*\S+", more)
    left = missing(context)
    while left > 0:
        count = max(1, left // 2)
        longer = context + "".join(words[:count])
        after = missing(longer)
        if after < 0 and count == 1:
            break
        if after >= 0:
            context, left = longer, after
            words = words[count:]
        else:
            left = 1  # too much: continue with single words
    if not missing(context):
        return context
    for end in range(1, len(words[0])):
        if not missing(context + words[0][:end]):
            return context + words[0][:end]
    # A space at the end counts only once something follows; without it, a letter is one token.
    for start, pad in itertools.product((context, context.rstrip()), _PADS):
        padded = start
        while missing(padded) > 0:
            padded += pad
        if not missing(padded):
            return padded
    raise ValueError("no text of exactly that many tokens; ask for one token more or less")


def locate(prompt: Prompt, context: str, question: str, words: str, length: int) -> Needle:
    """Where ``words`` lie in a prompt of ``length`` tokens."""
    text = prompt.text(context, question)
    start = text.index(words)
    before = len(prompt.encode(text[:start].rstrip(" ")))
    until = len(prompt.encode(text[: start + len(words)]))
    return Needle(distance=length - before, tokens=until - before)


def most_that_fit(count: int, missing: Callable[[int], int]) -> int:
    """How many of ``count`` parts fit, by bisection.

    Args:
        count: of all parts.
        missing: the tokens that a prompt with so many parts lacks; negative: it is too long.
    """
    least, most = 0, count
    while least < most:
        middle = (least + most + 1) // 2
        if missing(middle) >= 0:
            least = middle
        else:
            most = middle - 1
    return least
