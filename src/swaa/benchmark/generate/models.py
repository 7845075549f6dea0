"""Models to measure: real ones, and published shapes filled with random weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from swaa.model_shapes import shape_config
from swaa.models import load_model

SEED = 0
"""Seed of random weights and prompts."""


class MeasuredModel(NamedTuple):
    """A model, and what to call it in results.

    Attributes:
        model: in evaluation mode, not adapted.
        name: of the shape, or of the checkpoint.
        revision: which weights; ``random weights`` for a shape.
    """

    model: PreTrainedModel
    name: str
    revision: str | None


def make_model(name: str, *, device: str, dtype: torch.dtype) -> MeasuredModel:
    """Build a shape with random weights on the device, or load a checkpoint.

    Args:
        name: a key of :data:`swaa.model_shapes.SHAPES`, or what
            :func:`swaa.models.load_model` takes.
        device: ``cuda`` or ``cpu``.
        dtype: of weights and cache.
    """
    config = shape_config(name)
    if config is None:
        loaded = load_model(name, dtype=dtype, device=device)
        return MeasuredModel(loaded.model, loaded.name, loaded.revision)
    torch.manual_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return MeasuredModel(model.eval(), name, "random weights")
