"""A tiny random model of every causal type that Transformers knows, from its own configuration.

Sizes are written over the defaults of the type's configuration, by name. What does not follow from
names stands in :data:`SMALL`; what cannot be tried, with the reason, in :data:`NOT_TRIED`.
"""

import inspect

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.integrations.families import COMMON, EXPERTS, NATIVE_WINDOW

LAYERS = COMMON["num_hidden_layers"]
MOST_PARAMETERS = 5_000_000
SIZES = {
    **COMMON,
    **EXPERTS,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_groups": 1,
    "num_dense_layers": 1,
    "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 32,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "global_head_dim": 32,
    "rotary_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_d_state": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "vocab_size_per_layer_input": 97,
    "hidden_size_per_layer_input": 16,
    "embedding_size": 64,
    "word_embed_proj_dim": 64,
    "n_inner": 96,
}
SMALL = {
    "gemma4_text": {"global_head_dim": 32},
}
NOT_TRIED = {}
TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name):
    """The type's configuration with few layers, of every kind that it has by default."""
    cls = CONFIG_MAPPING[name]
    usual = cls()
    options = {key: size for key, size in SIZES.items() if _takes(cls, usual, key)}
    types = getattr(usual, "layer_types", None)
    if types and _settable(cls, "layer_types"):
        options["layer_types"] = _few(types)
    if hasattr(usual, "sliding_window"):
        slides = "sliding_attention" in (types or ())
        options["sliding_window"] = NATIVE_WINDOW if slides else None
    options.update(SMALL.get(name, {}))
    return cls(**options)


def build(config):
    """A random model; one that is not small has no weights: to be refused by its shapes alone."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if model.num_parameters() > MOST_PARAMETERS:
        return model
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def _few(types):
    """Every kind in turn, full attention last."""
    kinds = sorted(dict.fromkeys(types), key=lambda kind: kind == "full_attention")
    return [kinds[-1 - (LAYERS - 1 - index) % len(kinds)] for index in range(LAYERS)]


def _takes(cls, usual, key):
    try:
        return hasattr(usual, key) and _settable(cls, key)
    except RuntimeError:  # layers differ in it
        return True


def _settable(cls, key):
    found = inspect.getattr_static(cls, key, None)
    return not isinstance(found, property) or found.fset is not None
