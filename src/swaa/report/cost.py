"""The computed cost of a setting's prompt: exact where measured times cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping

from swaa.config import LayerPlan, SWAAConfig
from swaa.plan import price, visible_pairs
from swaa.shapes import LayerShape, ModelShape

_SMOLLM2 = ModelShape(
    model_type="llama",
    layers=(
        LayerShape(
            kind="full",
            heads=9,
            kv_heads=3,
            head_dim=64,
            linear_weights=576 * (2 * 64 * (9 + 3) + 3 * 1536),
        ),
    )
    * 30,
    head_weights=49_152 * 576,
)

SHAPES = {"SmolLM2-135M-Instruct.Q4_1": _SMOLLM2}
"""Sizes of models, which no result holds, by their name in results without ``.gguf``."""


def shares_of(model: str, config: SWAAConfig, prompt_length: int) -> Mapping[str, float] | None:
    """The cost of a setting on a model, from its configuration and the prompt's length alone.

    Args:
        model: its name in the result.
        config: the setting.
        prompt_length: tokens.

    Returns:
        The shares of :meth:`swaa.plan.Price.shares`; ``None`` when they depend on sizes that the
        result does not hold. A model of unknown sizes is priced where all its layers do the same:
        then sizes affect only ``flops_share``, which is left out.
    """
    shape = SHAPES.get(model.removesuffix(".gguf"))
    if shape is not None:
        return price(shape, config, prompt_length=prompt_length).shares()
    if config.window is None:
        return {"keys_share": 1.0, "flops_share": 1.0, "kv_share": 1.0}
    if config.full_layers or not isinstance(config.full_decode, bool):
        return None
    (plan,) = config.layers(1)
    full = visible_pairs(LayerPlan(window=None), prompt_length, 0, prompt_length)
    kept = prompt_length if plan.keeps_all_keys else config.window + config.sink_tokens
    return {
        "keys_share": visible_pairs(plan, prompt_length, 0, prompt_length) / full,
        "kv_share": min(1.0, kept / prompt_length),
    }
