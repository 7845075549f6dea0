"""The cache's name in the installed Transformers: ``cache`` since 5.24, ``past_key_values`` before.

Newer versions still take the older name and warn; older ones do not know the newer name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

NAMES = ("cache", "past_key_values")
"""Every name of the supported versions, the newest first."""

CACHE = next(
    name for name in NAMES if name in {f.name for f in dataclasses.fields(CausalLMOutputWithPast)}
)
"""The installed version's name: of a model's argument, and of the field in its output."""


def cache_argument(cache: Any) -> dict[str, Any]:
    """Keyword argument of a model's forward pass, or of a model output, that holds a cache."""
    return {CACHE: cache}


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among keyword arguments, under either name; None: there is none.

    Raises:
        ValueError: when both names are given.
    """
    given = [name for name in NAMES if arguments.get(name) is not None]
    if len(given) > 1:
        raise ValueError(
            f"both {' and '.join(NAMES)} are given; they are one argument: pass {CACHE}"
        )
    return arguments[given[0]] if given else None


def cache_of(output: Any) -> Any:
    """The cache that a forward pass or ``generate`` returned."""
    return getattr(output, CACHE)
