"""Compile a model's kernels before its first prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import cast

import torch
from transformers import PreTrainedModel

from swaa.config import LayerPlan
from swaa.integrations.transformers.support import execution_device

ROOM = 256
"""Tokens beyond the window, so that keys are hidden: short prompts take other kernels."""


def warm_up(model: PreTrainedModel, plans: Sequence[LayerPlan]) -> float:
    """Generate two tokens after a prompt longer than every window, and discard them.

    Kernels are compiled at their first call, which takes seconds for Triton and up to a minute for
    FlashAttention-4 (kept on disk for the next start). The state of random numbers is kept.

    Args:
        model: adapted.
        plans: what its layers do.

    Returns:
        Seconds it took.
    """
    begin = time.perf_counter()
    config = model.config.get_text_config()
    tokens = ROOM + max((plan.window or 0) + plan.sink_tokens + plan.dense_tail for plan in plans)
    limit = getattr(config, "max_position_embeddings", None) or tokens
    device = execution_device(model)
    ids = torch.arange(min(tokens, limit - 2), device=device)[None] % config.vocab_size
    generate = cast(Callable[..., object], model.generate)
    generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
