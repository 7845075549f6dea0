"""The signals that say which layers matter; :data:`SIGNALS` lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

U = TypeVar("U", bound=Any)

SIGNALS = {
    "answer_nll": "add-one: what each layer alone brings to the answers' likelihood",
    "answer_nll_out": "leave-one-out: what the answers' likelihood loses without each layer",
    "kl": "add-one: how much nearer each layer alone brings full attention's answers",
    "kl_out": "leave-one-out: how far full attention's answers go without each layer",
    "lazy_ratio": "attention of the last prompt rows beyond sinks and window (LightTransfer)",
    "lazy_ratio_reversed": "the same, its lazy layers kept instead",
    "far_attention": "attention of the head that looks farthest beyond sinks and window",
    "head_attention": "the same for KV heads: attention of the answers' rows",
}
"""Signals that rank layers or KV heads; `periodic` patterns are not among them."""

OF_LAYERS = ("lazy_ratio", "lazy_ratio_reversed", "far_attention")
"""Signals that rank layers only."""

OF_HEADS = "head_attention"
"""The signal that ranks KV heads only."""

FROM_ATTENTION = (*OF_LAYERS, OF_HEADS)
"""Signals from one pass of full attention over all samples; others take one pass per layer."""


def top(importance: Mapping[U, float], count: int) -> tuple[U, ...]:
    """The ``count`` most important units, in order; of equal ones the later one.

    >>> top({0: 0.1, 1: 0.5, 2: 0.3}, 2)
    (1, 2)
    """
    ranked = rank(importance)
    return tuple(sorted(ranked[:count]))


def rank(importance: Mapping[U, float]) -> Sequence[U]:
    """Layers or KV heads, the most important first."""
    later = sorted(importance, reverse=True)
    return sorted(later, key=lambda unit: -importance[unit])
