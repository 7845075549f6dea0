"""How to install what a part of swaa needs beyond its core."""

from __future__ import annotations


def install_line(extra: str) -> str:
    """The command that installs one of swaa's extras, from a clone: no index has swaa yet.

    Args:
        extra: its name in pyproject.toml.
    """
    return f"pip install '.[{extra}]' in your clone of swaa"
