"""The signals that say which layers matter; :data:`SIGNALS` lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SIGNALS = {
    "answer_nll": "add-one: what each layer alone brings to the answers' likelihood",
    "answer_nll_out": "leave-one-out: what the answers' likelihood loses without each layer",
    "kl": "add-one: how much nearer each layer alone brings full attention's answers",
    "kl_out": "leave-one-out: how far full attention's answers go without each layer",
    "lazy_ratio": "attention of the last prompt rows beyond sinks and window (LightTransfer)",
    "lazy_ratio_reversed": "the same, its lazy layers kept instead",
    "far_attention": "attention of the head that looks farthest beyond sinks and window",
}
"""Signals that rank layers; `periodic` patterns are not among them."""


FROM_ATTENTION = ("lazy_ratio", "lazy_ratio_reversed", "far_attention")
"""Signals from one pass of full attention over all samples; others take one pass per layer."""


def top(importance: Mapping[int, float], count: int) -> tuple[int, ...]:
    """The ``count`` most important layers, in order; of equal ones the later layer.

    >>> top({0: 0.1, 1: 0.5, 2: 0.3}, 2)
    (1, 2)
    """
    ranked = rank(importance)
    return tuple(sorted(ranked[:count]))


def rank(importance: Mapping[int, float]) -> Sequence[int]:
    """Layers, the most important first."""
    return sorted(importance, key=lambda layer: (-importance[layer], -layer))
