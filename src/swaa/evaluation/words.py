"""Whether a text says something: by whole words and whole numbers, however they are written."""

from __future__ import annotations

import re
import unicodedata

_ALIKE = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
    }
)
"""Typographic characters and their plain equivalents."""

_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:([,'_])\d{3}(?:\1\d{3})*|(?:\.\d{3}){2,})(?!\d)")
"""A number in groups: 1,234 or 1'234'567; with points, at least two groups (so not 1.234)."""

_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d])")
"""The same with spaces; may also be several numbers: 1 234 567."""

_LIST = re.compile(r"(?<![\d.,])\d+(?:,\d+){2,}(?![\d.])")
"""Several numbers: 3,4,5 (a single comma may be a decimal one)."""

_UNSPACED = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x3040, 0x30FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
"""Scripts without spaces between words, or none before particles: Thai, Lao, Tibetan, Burmese,
Khmer, Chinese, Japanese, Korean."""


def says(text: str, answer: str) -> bool:
    """Whether a text contains an answer as whole words.

    Case, Unicode form, kind of space and grouping of digits do not matter.

    >>> says("It is 1,234,567.", "1234567"), says("There were 15 ships.", "5")
    (True, False)

    Args:
        text: what is searched.
        answer: what is searched for; not empty after :func:`normalise`.
    """
    plain, wanted = normalise(text), normalise(answer)
    return _found(plain, wanted) or _found(_joined(plain), _joined(wanted))


def normalise(text: str) -> str:
    """One spelling for what reads the same: NFKC, lower case, plain digits, ungrouped numbers."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = "".join(map(_plain, text)).translate(_ALIKE)
    text = _GROUPS.sub(lambda found: re.sub(r"\D", "", found[0]), " ".join(text.split()))
    return _LIST.sub(lambda found: found[0].replace(",", ", "), text)


def _plain(sign: str) -> str:
    """Digits of every script as 0 to 9; invisible characters become empty."""
    if unicodedata.category(sign) == "Cf":  # soft hyphens, marks of direction
        return ""
    return str(unicodedata.decimal(sign)) if sign.isdecimal() else sign


def _joined(text: str) -> str:
    return _SPACED.sub(lambda found: found[0].replace(" ", ""), text)


def _found(text: str, wanted: str) -> bool:
    place = text.find(wanted)
    while place >= 0:
        if _stands_alone(text, place, place + len(wanted)):
            return True
        place = text.find(wanted, place + 1)
    return False


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether no word and no number continues past either end of ``text[start:end]``."""
    before, after = text[:start][-2:], text[end : end + 2]
    if before and _same_word(before[-1], text[start]):
        return False
    if after and _same_word(text[end - 1], after[0]):
        return False
    return not (_number_before(before, text[start]) or _number_behind(after, text[end - 1]))


def _same_word(left: str, right: str) -> bool:
    if left.isdecimal() and right.isdecimal():
        return True
    if not (_is_letter(left) and _is_letter(right)):
        return False
    return not (_is_unspaced(left) or _is_unspaced(right))


def _is_letter(sign: str) -> bool:
    return sign.isalnum() or unicodedata.category(sign).startswith("M")


def _is_unspaced(sign: str) -> bool:
    return any(first <= ord(sign) <= last for first, last in _UNSPACED)


def _number_before(before: str, first: str) -> bool:
    """Whether ``1.`` before ``5``, or a minus sign that is not a hyphen, continues a number."""
    if not first.isdecimal() or not before or before[-1] not in ".,-":
        return False
    ahead = before[:-1]
    return not ahead.isalnum() if before[-1] == "-" else ahead.isdecimal()


def _number_behind(after: str, last: str) -> bool:
    """Whether ``.5`` after ``1`` continues a number."""
    return last.isdecimal() and len(after) == 2 and after[0] in ".," and after[1].isdecimal()
