"""From which prompt length on a configuration is worth it on a model, by arithmetic."""

from __future__ import annotations

from swaa.config import SWAAConfig
from swaa.plan import price
from swaa.shapes import ModelShape

LONGEST = 2**24
"""Prompts beyond so many tokens are not looked at."""


def saves_from(shape: ModelShape, config: SWAAConfig, share: float) -> int | None:
    """The shortest prompt of which a configuration saves a share of full attention's FLOPs.

    Linear layers are part of the FLOPs where there is a formula for them. The share saved grows
    with the prompt, so that it is found by halving.

    Args:
        shape: of the model.
        config: the configuration.
        share: to save, 0 to 1.

    Returns:
        Tokens; ``None``: it saves less at any length.
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
