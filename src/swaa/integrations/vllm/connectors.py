"""Which of vLLM's KV connectors are served: its own for the CPU's memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from swaa.heads import HeadSelection
from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.vllm.drafts import served_model
from swaa.integrations.vllm.settings import Settings

OFFLOADING = "swaa.integrations.vllm.offloading"
"""The module in which vLLM finds its connector for KV offloading, with swaa's limits."""

_OFFLOADING_SETTINGS = (
    *("cpu_bytes_to_use", "blocks_per_chunk", "block_size", "eviction_policy"),
    *("store_threshold", "max_tracker_size", "offload_prompt_only"),
)
"""Settings of vLLM's connector that choose how much it holds, in which pieces."""


def refusals(vllm_config: Any) -> Iterator[str]:
    """Connectors other than vLLM's for the CPU's memory, and settings of it that were not tried."""
    transfer = vllm_config.kv_transfer_config
    if transfer is None:
        return
    name, role = transfer.kv_connector, transfer.kv_role
    own = transfer.kv_connector_module_path in (None, OFFLOADING)
    if role != "kv_both":
        yield (
            f"P/D disaggregation ({role}) brings keys from another engine, and nothing tells"
            " whether it follows the same recipe; serve without --kv-transfer-config"
        )
    if name != "OffloadingConnector" or not own:
        yield (
            f"the KV connector {name} may bring keys that were computed under another recipe, or"
            " that only one prompt may use; to offload to the CPU give --kv-offloading-size alone"
        )
    for key, value in transfer.kv_connector_extra_config.items():
        if key not in _OFFLOADING_SETTINGS and (key, value) != ("spec_name", "CPUOffloadingSpec"):
            yield f"KV offloading with {key} was not tried; leave it out"
    if vllm_config.speculative_config is not None:
        yield "KV offloading was not tried next to speculative decoding; serve without one of them"


def check_offloading(vllm_config: Any, settings: Settings) -> None:
    """Refuse KV offloading where a block is more, or for less long, than keys of its tokens.

    Args:
        vllm_config: of the engine.
        settings: fitted to its model.

    Raises:
        UnsupportedError: with the first reason.
    """
    if vllm_config.kv_transfer_config is not None:
        for reason in _offloading_reasons(vllm_config, settings):
            raise UnsupportedError(f"swaa: KV offloading: {reason}")


def _offloading_reasons(vllm_config: Any, settings: Settings) -> Iterator[str]:
    model, config = served_model(vllm_config), settings.config
    if model.is_hybrid:
        yield "it was not tried next to states of linear layers; serve without"
    if isinstance(config.full_decode, HeadSelection):
        yield "it was not tried with KV heads in full_decode; name layers, or serve without"
    if config.decode_keys:
        yield (
            "vLLM copies keys and values only, not the statistics behind them by which decode_keys"
            " chooses; leave decode_keys out, or serve without"
        )
    plans = settings.plans(model.get_total_num_hidden_layers(), model.get_total_num_kv_heads())
    frees = not vllm_config.scheduler_config.disable_hybrid_kv_cache_manager
    if frees and not all(plan.keeps_all_keys for plan in plans):
        yield (
            "sliding layers free blocks that vLLM may still be storing, and it does not load sinks;"
            " serve a recipe with full decode in every layer, such as balanced, or give"
            " --disable-hybrid-kv-cache-manager, with which every layer keeps all keys"
        )
