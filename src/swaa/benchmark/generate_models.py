"""Models to measure: real ones, and published shapes filled with random weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from swaa.models import load_model

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000},
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131_072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000},
        "tie_word_embeddings": False,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000_000},
        "tie_word_embeddings": False,
    },
    "tiny": {
        "model_type": "qwen3",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 262_144,
        "tie_word_embeddings": True,
    },
}
"""Sizes as in the models' published configurations; ``tiny`` is for trying the command.

Speed depends on sizes, not on what the weights hold.
"""

SEED = 0
"""Of random weights and prompts."""


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
        name: a key of :data:`SHAPES`, or what :func:`swaa.models.load_model` takes.
        device: ``cuda`` or ``cpu``.
        dtype: of weights and cache.
    """
    if name not in SHAPES:
        loaded = load_model(name, dtype=dtype, device=device)
        return MeasuredModel(loaded.model, loaded.name, loaded.revision)
    values = dict(SHAPES[name])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.eos_token_id = config.bos_token_id = config.pad_token_id = None
    torch.manual_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return MeasuredModel(model.eval(), name, "random weights")
