"""The prompt length from which a configuration is worth it on a model, by arithmetic."""

from __future__ import annotations

from swaa.config import SWAAConfig
from swaa.plan import price
from swaa.shapes import ModelShape

LONGEST = 2**24
"""Longest prompt considered (tokens)."""


def saves_from(shape: ModelShape, config: SWAAConfig, share: float) -> int | None:
    """The shortest prompt at which a configuration saves this share of full attention's FLOPs.

    FLOPs include linear layers where there is a formula for them. The share saved grows with the
    prompt, so the length is found by bisection.

    Args:
        shape: of the model.
        config: the configuration.
        share: share of FLOPs to save, 0 to 1.

    Returns:
        Tokens; ``None``: it saves less at every length.
    """

    def saves(tokens: int) -> bool:
        return price(shape, config, prompt_length=tokens).ratios()["prefill_flops"] <= 1 - share

    if not saves(LONGEST):
        return None
    too_short, enough = 0, LONGEST
    while enough - too_short > 1:
        middle = (too_short + enough) // 2
        if saves(middle):
            enough = middle
        else:
            too_short = middle
    return enough
