"""Tiny models in which linear or convolution layers stand between layers with keys."""

import importlib

import torch
from torch.nn.functional import softplus

from tests.served import VOCABULARY

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
DELTA_NET = {
    "num_hidden_layers": 6,
    "layer_types": ["linear_attention", "full_attention"] * 3,
    "head_dim": 32,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
FAMILIES = {
    "lfm2": {
        "num_hidden_layers": 6,
        "layer_types": ["conv", "full_attention"] * 3,
        "conv_L_cache": 3,
        "block_auto_adjust_ff_dim": False,
        # Names by which vLLM reads the same sizes.
        "conv_dim": 128,
        "block_dim": 128,
        "block_ff_dim": 96,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
    },
    "qwen3_next": DELTA_NET | EXPERTS,
}


def save_hybrid(folder, family):
    """Save a tiny random float32 model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


class _Instead:
    """A module of which some names mean something else."""

    def __init__(self, module, **names):
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name):
        return getattr(self._module, name)


def compute_delta_nets_in_float32(patch):
    """Replace vLLM's kernels of gated delta nets for CPUs, which take bfloat16 only.

    What is left of vLLM's: projections, convolution, states, their blocks and indices. The judge
    goes row by row, too: by chunks Transformers rounds to 4e-4.
    """
    from transformers.models.qwen3_5 import modeling_qwen3_5 as dense
    from transformers.models.qwen3_next import modeling_qwen3_next as reference
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    row_by_row = reference.torch_recurrent_gated_delta_rule
    for module in (reference, dense):
        patch.setattr(module, "torch_chunk_gated_delta_rule", row_by_row)
    # This loads the library that fits the processor. What is denied below chooses another one, and
    # a second library ends the process.
    importlib.import_module("vllm.kernels")
    patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    patch.setattr(gdn_attention, "torch", _Instead(torch, bfloat16=torch.float32))
    kernels = {
        "fused_gdn_gating_cpu": _gates,
        "chunk_gated_delta_rule_cpu": _prefill,
        "fused_sigmoid_gating_delta_rule_update_cpu": _decode,
    }
    patch.setattr(gdn_attention, "ops", _Instead(gdn_attention.ops, **kernels))


def _gates(A_log, a, b, dt_bias):  # noqa: N803
    return -A_log.exp() * softplus(a + dt_bias), b.sigmoid()


def _prefill(query, key, value, g, beta, initial_state, cu_seqlens, initial_state_indices, **_):
    parts = [
        _recurrent(query[0, i:j], key[0, i:j], value[0, i:j], g[i:j], beta[i:j], initial_state, n)
        for i, j, n in zip(
            cu_seqlens[:-1].tolist(),
            cu_seqlens[1:].tolist(),
            initial_state_indices.tolist(),
            strict=True,
        )
    ]
    return torch.cat(parts)[None], None


def _decode(q, k, v, a, b, initial_state_source, initial_state_indices, **gating):
    g, beta = _gates(gating["A_log"], a, b, gating["dt_bias"])
    rows = []
    for i, n in enumerate(initial_state_indices.tolist()):
        own = slice(i, i + 1)
        given = q[0, own], k[0, own], v[0, own], g[own], beta[own]
        rows.append(_recurrent(*given, initial_state_source, n))
    return torch.cat(rows)


def _recurrent(query, key, value, g, beta, states, slot):
    """Rows of one sequence, ``[rows, heads, channels]``; its state moves on."""
    from transformers.models.qwen3_next import modeling_qwen3_next as reference

    group = value.shape[1] // query.shape[1]
    query, key = (x.repeat_interleave(group, 1) for x in (query, key))
    output, state = reference.torch_recurrent_gated_delta_rule(
        *(x[None] for x in (query, key, value)),
        g=g[None],
        beta=beta[None],
        initial_state=states[slot][None],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    states[slot] = state[0]
    return output[0]
