"""Numbers and types as people type them: ``32k`` tokens, ``bf16``."""

from __future__ import annotations

import argparse
import re

UNITS = {"": 1, "k": 1024, "m": 1024**2}
"""Factors by the last letter of a number: a prompt of 32k tokens has 32,768."""

_DTYPES = {
    **{"bf16": "bfloat16", "fp16": "float16", "half": "float16"},
    **{"fp32": "float32", "f32": "float32", "float": "float32", "f16": "float16"},
}


def whole_number(text: str) -> int:
    """A whole number: ``4096``, ``32_768``, ``32k``.

    Raises:
        argparse.ArgumentTypeError: for anything else; a parser puts the flag before it.
    """
    found = re.fullmatch(r"([-+]?\d+(?:_\d+)*)([km]?)", text.strip(), re.IGNORECASE | re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a whole number such as 4096 or 4k, which is the same"
        )
    return int(found[1]) * UNITS[found[2].lower()]


def dtype_name(text: str) -> str:
    """A type by its name in torch: ``bfloat16`` for ``bf16``; other names are unchanged."""
    return _DTYPES.get(text.lower(), text.lower())


def counted(number: int, noun: str) -> str:
    """``1 conversation``, ``2 conversations``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
