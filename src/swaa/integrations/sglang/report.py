"""After start-up: refuse an engine that is not what was asked for, and log it."""

from __future__ import annotations

import logging
import os
from typing import Any

from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.runtime_context import get_memory, get_parallel, get_server_args

from swaa.config import LayerPlan
from swaa.integrations.launch import write_report
from swaa.integrations.refusal import NotActiveError
from swaa.integrations.settings import Settings
from swaa.integrations.sglang import settings, support
from swaa.integrations.sglang.attention import SlidingAttention
from swaa.integrations.sglang.environment import REPORTS
from swaa.integrations.summary import adapted
from swaa.integrations.wrapping import check_wrapped


def verify(runner: Any) -> None:
    """Check a rank, then log one line.

    Args:
        runner: SGLang's ``ModelRunner``, with its pools, attention backends and graphs.

    Raises:
        NotActiveError: when it would not compute what was asked for.
        UnsupportedError: for a layer that cannot be adapted.
    """
    found = settings.find(runner.model_config)
    if found is None:
        return
    check_wrapped("SGLang")
    plans = settings.plans_of(runner.model_config)
    _check_backends(runner, plans)
    if get_memory().radix_cache_backend != support.CACHE:
        raise NotActiveError("swaa is not active: its radix cache is not in use")
    modules = runner.model.named_modules()
    layers = {name: module for name, module in modules if isinstance(module, RadixAttention)}
    for name, layer in layers.items():
        support.check_layer(name, layer)
    _check_count(runner, layers)
    line = summary(runner, found, [plans[layer.layer_id] for layer in layers.values()])
    parallel = get_parallel()
    rank = parallel.pp_rank * parallel.tp_size + parallel.tp_rank
    logging.getLogger("sglang.srt.swaa").info("rank %d: %s", rank, line)
    if os.environ.get(REPORTS):
        ranks = parallel.tp_size * parallel.pp_size // max(1, int(get_server_args().nnodes))
        write_report(os.environ[REPORTS], rank, ranks, line)


def summary(runner: Any, found: Settings, plans: list[LayerPlan]) -> str:
    """One line: what slides, by which kernels, and how many tokens the KV memory then holds."""
    backend, pool = runner.attn_backend, runner.memory_pool_config
    backend = getattr(backend, "prefill_backend", backend)
    longest = runner.model_config.context_len
    line = f"{adapted(found.config, plans, longest=longest)}, backend {backend.swaa_kernels}"
    tokens = pool.max_total_num_tokens
    if not backend.swaa_table.hybrid:
        return f"{line}; KV memory holds {tokens:,} tokens (full attention {tokens:,})"
    sliding = pool.swa_max_total_num_tokens
    mapping = runner.token_to_kv_pool.layers_mapping
    count = sum(bool(of_sliding) for _, of_sliding in mapping.values())
    layers = len(mapping)
    stock = (tokens * (layers - count) + sliding * count) // layers
    return (
        f"{line}; KV memory holds {tokens:,} tokens (full attention {stock:,}): {layers - count}"
        f" layers keep all keys, {count} layers share {sliding:,} slots"
    )


def _check_backends(runner: Any, plans: tuple[LayerPlan, ...]) -> None:
    backend = runner.attn_backend
    prefill = getattr(backend, "prefill_backend", backend)
    decode = getattr(backend, "decode_backend", backend)
    for phase, one in (("prefill", prefill), ("decode", decode)):
        if not isinstance(one, SlidingAttention):
            raise NotActiveError(
                f"swaa is not active: {type(one).__name__} computes {phase}; serve with"
                f" --attention-backend {support.PREFIX}{support.STOCK[-1]}"
            )
        if one.swaa_plans != plans:
            raise NotActiveError(f"swaa is not active: {phase} follows other plans")


def _check_count(runner: Any, layers: dict[str, Any]) -> None:
    expected = runner.layer_info.end_layer - runner.layer_info.start_layer
    if len({layer.layer_id for layer in layers.values()}) != expected or len(layers) != expected:
        raise NotActiveError(
            f"swaa is not active: {len(layers)} attention layers were found for {expected} decoder"
            " layers"
        )
