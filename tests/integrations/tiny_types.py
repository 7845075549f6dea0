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
UNSET = object()
SLIDING_AND_FULL = ["sliding_attention", "full_attention"] * 2
SMALL = {
    "deepseek_v4": {"sliding_window": NATIVE_WINDOW},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        "sliding_window": NATIVE_WINDOW,
        "num_kv_shared_layers": 2,
        "layer_types": SLIDING_AND_FULL,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "gemma4_text": {"global_head_dim": 32},
    "gemma4_unified_text": {"global_head_dim": 32},
    "inkling2_loop_text": {"sliding_window": NATIVE_WINDOW},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": LAYERS},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "laguna": {"sliding_window": NATIVE_WINDOW},
    "moshi": {"sliding_window": NATIVE_WINDOW},
    "plbart": {"decoder_attention_heads": 4, "encoder_attention_heads": 4},
    "prophetnet": {"num_hidden_layers": UNSET},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "roc_bert": {"pronunciation_embed_dim": 16, "shape_embed_dim": 16},
    "whisper": {"decoder_attention_heads": 4, "encoder_attention_heads": 4},
    "xlnet": {"max_position_embeddings": UNSET, "d_head": 16},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a type needs beside the sizes."""
_TEXT = "its text model is tried as a type of its own"
NOT_TRIED = {
    "emu3": "a composite whose text model has no type of its own",
    "gemma3n": "its vision tower needs timm",
    "gemma4_assistant": "reads the keys of another model",
    "gemma4_unified_assistant": "reads the keys of another model",
    "mllama": "a composite whose text model has no type of its own",
    "musicgen": "no text: its configuration holds three models",
    "musicgen_melody": "no text: its configuration holds three models",
    "cohere_compass_text": "its rotary embedding lacks parameters by default",
    "dbrx": "its default configuration builds no model",
    "inkling2_text": "many sizes without defaults",
    "inkling_text": "many sizes without defaults",
    "phi4_multimodal": "its vision and audio towers have no small size",
    "qwen4_exp": "many sizes without defaults",
    "qwen4_exp_text": "many sizes without defaults",
    "qwen3_5": _TEXT,
    "qwen3_5_moe": _TEXT,
}
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
    return cls(**{key: value for key, value in options.items() if value is not UNSET})


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
    key = cls.attribute_map.get(key, key)
    found = inspect.getattr_static(cls, key, None)
    return not isinstance(found, property) or found.fset is not None
