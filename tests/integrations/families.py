"""Tiny random models of every supported family, from their configurations alone."""

import copy
import functools

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import swaa

COMMON = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
NATIVE_WINDOW = 24
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "mistral": {"sliding_window": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 512},
    "olmo2": {},
    "granite": {},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "glm4": {},
    "gemma3_text": {
        "sliding_window": NATIVE_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "qwen3_next": {
        **EXPERTS,
        "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}


@functools.cache
def _built(family, **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], **options})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def tiny_model(family, **options):
    """A fresh copy of the family's tiny model, float32, on the CPU."""
    return copy.deepcopy(_built(family, **options))


def adapted(family, config, **options):
    """The same, adapted."""
    model = tiny_model(family, **options)
    swaa.adapt(model, config, quiet=True)
    return model


def layer_types(model):
    return getattr(model.config, "layer_types", None) or ["full_attention"] * 4
