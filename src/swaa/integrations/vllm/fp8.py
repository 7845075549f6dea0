"""Keys and values in fp8: which engines store them so, and what is refused next to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from swaa.integrations.vllm.drafts import draft_model, served_model

FP8_CACHES = ("fp8", "fp8_e4m3")
"""What vLLM calls a cache in e4m3 with one factor a layer for keys and one for values."""


def stores_fp8(vllm_config: Any) -> bool:
    """Whether keys and values are stored in fp8."""
    cache = vllm_config.cache_config.cache_dtype
    # vLLM takes such a checkpoint at its word only when it builds the first layer.
    return cache in FP8_CACHES or (cache == "auto" and _scheme(vllm_config) is not None)


def _scheme(vllm_config: Any) -> Mapping[str, Any] | None:
    """How a checkpoint of compressed-tensors wants keys to be stored, or None."""
    quantisation = getattr(vllm_config, "quant_config", None)
    return getattr(quantisation, "kv_cache_scheme", None)


def refusals(vllm_config: Any) -> Iterator[str]:
    """Why an engine that stores fp8 cannot be served."""
    from vllm.platforms import current_platform

    model = served_model(vllm_config)
    if (_scheme(vllm_config) or {}).get("strategy") == "attn_head":
        own = str(model.dtype).removeprefix("torch.")
        yield (
            "the checkpoint has factors of its fp8 keys for each KV head, and served is one a"
            f" layer; use --kv-cache-dtype {own}"
        )
    if vllm_config.cache_config.kv_cache_dtype_skip_layers:
        yield (
            "--kv-cache-dtype-skip-layers makes pages of two sizes, which was not tried; leave it"
            " out"
        )
    cuda = current_platform.is_cuda() and current_platform.has_device_capability(89)
    if not (cuda or current_platform.is_cpu()):
        yield "a KV cache in fp8 needs an NVIDIA GPU of compute capability 8.9 or more"
    if model.is_hybrid:
        yield "a KV cache in fp8 was not tried next to states of linear layers"
    if draft_model(vllm_config) is not None:
        yield "a KV cache in fp8 was not tried next to a draft model; choose ngram, or drop one"
