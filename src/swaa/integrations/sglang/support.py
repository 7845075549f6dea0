"""What is refused, and why: versions, models and features with which the mask would be wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from swaa.config import SWAAConfig
from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.settings import Settings
from swaa.integrations.sglang.environment import REQUIRED

VERSION = "0.5.23"
"""The SGLang release that the hooks were written for; its internals move with every release."""
ANY_VERSION = "SWAA_SGLANG_ANY_VERSION"
"""Environment variable that allows other versions."""
PREFIX = "swaa_"
STOCK = ("torch_native", "triton")
"""Stock attention backends from which ours are derived, by name."""
CACHE = "swaa"
"""Our radix cache backend."""


def check_version(version: str) -> None:
    """Refuse an SGLang that was not tested.

    Raises:
        UnsupportedError: unless ``SWAA_SGLANG_ANY_VERSION`` is set.
    """
    if version.partition("+")[0] != VERSION and not os.environ.get(ANY_VERSION):
        raise UnsupportedError(
            f"SGLang {version} was not tested, {VERSION} was: install that, or set {ANY_VERSION}=1"
            " to try"
        )


def check_required(found: Settings | None) -> None:
    """Under ``swaa serve``: refuse an engine with another configuration than was asked for.

    Raises:
        UnsupportedError: with both configurations.
    """
    wanted = os.environ.get(REQUIRED)
    said = json.dumps(None if found is None else found.to_dict(), sort_keys=True)
    if wanted is not None and json.loads(wanted) != json.loads(said):
        raise UnsupportedError(
            f"swaa: 'swaa serve' asked for {wanted}, and SGLang's model configuration says {said}:"
            " leave --json-model-override-args out, in a --config file, too"
        )


def check_engine(model_config: Any, config: SWAAConfig) -> None:
    """Refuse recipes, models and options, before weights are loaded.

    Args:
        model_config: SGLang's ``ModelConfig`` of the served model.
        config: the knobs that were asked for.

    Raises:
        UnsupportedError: with the first reason.
    """
    for reason in (*_recipe_reasons(config), *_model_reasons(model_config), *_engine_reasons()):
        raise UnsupportedError(f"swaa: {reason}")


def check_layer(name: str, layer: Any) -> None:
    """Refuse an attention layer (SGLang's ``RadixAttention``) that computes more than ours does.

    Raises:
        UnsupportedError: with the first reason.
    """
    for reason in _layer_reasons(layer):
        raise UnsupportedError(f"swaa: layer {name} {reason}")


def _recipe_reasons(config: SWAAConfig) -> Iterator[str]:
    if config.decode_keys:
        yield "decode_keys is not served by SGLang yet; use vLLM, or a recipe without it"
    if config.selected_layers:
        yield (
            "selected_layers is not served by SGLang yet; use vLLM, or a recipe without it, such as"
            " balanced"
        )


def _model_reasons(model: Any) -> Iterator[str]:
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.model_config import AttentionArch, is_hybrid_swa_model

    text, kinds = model.hf_text_config, model.hf_config.architectures or []
    name = ", ".join(kinds)
    if not model.is_generation:
        yield f"{name} does not generate; swaa serves generation"
    if model.is_encoder_decoder:
        yield f"{name} is an encoder-decoder; swaa adapts decoders"
    if model.is_multimodal:
        yield f"{name} is multimodal; swaa adapts text-only decoders"
    if model.attention_arch != AttentionArch.MHA:
        yield f"{name} compresses its keys (multi-head latent attention)"
    if mambaish_config(model) is not None:
        yield f"{name} has layers without softmax attention"
    if model.has_attention_sinks:
        yield f"{name} has learned sink logits"
    if is_hybrid_swa_model(kinds) or "sliding_attention" in (
        getattr(text, "layer_types", None) or ()
    ):
        yield f"{name} has layers that slide already, as the model came"


def _engine_reasons() -> Iterator[str]:
    from sglang.srt.runtime_context import (
        get_disagg,
        get_exec,
        get_memory,
        get_model,
        get_parallel,
        get_serving,
        get_spec,
    )

    kernel, memory, parallel = get_exec().kernel, get_memory(), get_parallel()
    names = [
        getattr(kernel, f"{phase}attention_backend") or kernel.attention_backend
        for phase in ("prefill_", "decode_")
    ]
    if not all(str(name).startswith(PREFIX) for name in names):
        known = ", ".join(PREFIX + stock for stock in STOCK)
        yield (
            f"not active: attention runs on {' and '.join(dict.fromkeys(map(str, names)))}; serve"
            f" with --attention-backend, one of {known}"
        )
    if memory.radix_cache_backend != CACHE:
        yield (
            "not active: keys of other phases would be reused; serve with --radix-cache-backend"
            f" {CACHE}, also where the radix cache is disabled"
        )
    if get_spec().speculative_algorithm is not None:
        yield "speculative decoding is not served by SGLang yet; use vLLM, or serve without it"
    if get_disagg().disaggregation_mode != "null":
        yield "prefill and decode on separate servers hand on keys that a layer may have freed"
    if get_disagg().enable_pdmux:
        yield "--enable-pdmux runs prefill and decode at the same time, which was not tried"
    if memory.enable_hierarchical_cache or memory.enable_lmcache or memory.enable_flexkv:
        yield (
            "caches beyond the GPU store keys that a layer may have freed; serve without"
            " hierarchical cache, LMCache and FlexKV"
        )
    if memory.enable_unified_cache_external_linker or memory.enable_unified_memory:
        yield "external cache linkers and unified memory were not tried; serve without them"
    if get_serving().enable_streaming_session:
        yield "a streamed session's prompt grows; serve without --enable-streaming-session"
    if parallel.attn_cp_size > 1 or parallel.dcp_enabled:
        yield "context parallelism spreads one sequence's keys over GPUs; serve without it"
    if parallel.attn_dp_enabled:
        yield "data-parallel attention was not tried; serve without --enable-dp-attention"
    overlap = get_exec().overlap
    if overlap.enable_two_batch_overlap or overlap.enable_single_batch_overlap:
        yield "two-batch overlap splits batches without their prompt lengths; serve without it"
    if get_exec().dllm.dllm_algorithm is not None:
        yield "diffusion decoding sees later tokens; swaa's rows do not"
    if get_model().kv_cache_dtype not in ("auto", "bf16", "bfloat16"):
        yield (
            f"a KV cache of {get_model().kv_cache_dtype} is not served; use --kv-cache-dtype auto"
        )
    yield from _graph_reasons()


def _graph_reasons() -> Iterator[str]:
    from sglang.srt.model_executor.cuda_graph_config import Backend
    from sglang.srt.runtime_context import get_device, get_exec

    if get_device().device != "cpu":
        graphs = get_exec().graph.cuda_graph_config
        if graphs is not None and graphs.prefill.backend != Backend.DISABLED:
            yield (
                "graphs of prompts were not tried; serve with --cuda-graph-backend-prefill disabled"
            )


def _layer_reasons(layer: Any) -> Iterator[str]:
    from sglang.srt.layers.radix_attention import AttentionType

    if layer.attn_type != AttentionType.DECODER or layer.is_cross_attention:
        yield "is not a decoder's attention; swaa adapts decoders"
    if layer.sliding_window_size not in (None, -1):
        yield "slides already, as the model came"
    if layer.logit_cap:
        yield "soft-caps its scores"
    if layer.v_head_dim != layer.qk_head_dim:
        yield "has values of another size than its keys"
