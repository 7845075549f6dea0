"""After start-up: refuse an engine that is not what was asked for, and log what is active."""

from __future__ import annotations

import logging
import os
from typing import Any, NamedTuple

from vllm.v1.kv_cache_interface import MambaSpec

from swaa.config import LayerPlan
from swaa.integrations.launch import write_report
from swaa.integrations.refusal import NotActiveError
from swaa.integrations.summary import adapted
from swaa.integrations.vllm import settings
from swaa.integrations.vllm.attention import SlidingAttention
from swaa.integrations.vllm.connectors import OFFLOADING
from swaa.integrations.vllm.drafts import draft_model, is_attached
from swaa.integrations.vllm.environment import REPORTS
from swaa.integrations.vllm.head_parts import SLIDING
from swaa.integrations.vllm.kv_cache import decode_blocks
from swaa.integrations.vllm.layers import Active
from swaa.integrations.vllm.metadata import SlidingMetadataBuilder


def verify(wrapper: Any, active: Active, kv_cache: Any) -> None:
    """Check every layer of a rank, then log one line.

    Args:
        wrapper: vLLM's ``WorkerWrapperBase`` of this rank.
        active: what was asked for.
        kv_cache: the rank's ``KVCacheConfig``.

    Raises:
        NotActiveError: naming the first layer that is not as it should be.
    """
    vllm_config = wrapper.vllm_config
    specs = _specs(kv_cache)
    layers = _attention_layers(vllm_config)
    first, end = vllm_config.model_config.get_layers_start_end_indices(vllm_config.parallel_config)
    able = [index for index in active.able if first <= index < end]
    _check_count(_served_plans(active, layers), len(able))
    _check_drafts(wrapper.worker.model_runner, layers, kv_cache, vllm_config)
    for name, layer in layers.items():
        fault = _fault(layer, specs.get(name))
        if fault:
            raise NotActiveError(f"swaa is not active in layer {name}: {fault}")
    for group in attention_groups(wrapper.worker.model_runner):
        _check_group(group, layers)
    needed = active.prompt_length_switch
    if needed is not None and vllm_config.model_config.rswa_window != needed:
        raise NotActiveError("swaa is not active: vLLM does not pass prompt lengths on")
    transfer = vllm_config.kv_transfer_config
    if transfer is not None and transfer.kv_connector_module_path != OFFLOADING:
        raise NotActiveError(
            "swaa is not active: KV offloading stores and loads without its limits"
        )
    line = summary(active, layers, kv_cache, vllm_config)
    logging.getLogger("vllm.swaa").info("rank %d: %s", wrapper.global_rank, line)
    if os.environ.get(REPORTS):
        ranks = vllm_config.parallel_config.local_world_size
        write_report(os.environ[REPORTS], wrapper.global_rank, ranks, line)


def say_full_attention(wrapper: Any) -> None:
    """Log one line where full attention was asked for, so that every engine logs something."""
    if settings.find(wrapper.vllm_config) is not None:
        logging.getLogger("vllm.swaa").info(
            "rank %d: swaa adapted no layer: full attention, as the configuration says",
            wrapper.global_rank,
        )


def summary(active: Active, layers: dict[str, Any], kv_cache: Any, vllm_config: Any) -> str:
    """One line: what slides, by which kernels, and how many tokens the KV cache then holds."""
    ours = [layer for layer in layers.values() if not layer.swaa.stock]
    drafting = sum(layer.swaa.draft for layer in layers.values())
    attached = is_attached(vllm_config)
    kind = f"draft ({vllm_config.speculative_config.method})" if attached else "draft model"
    beside = f" next to a {kind} of {drafting}" if drafting else ""
    linear = len(active.plans) - len(active.able)
    beside += f" next to {linear} without keys" if linear else ""
    kernels = ", ".join(sorted({layer.impl.kernels for layer in ours})) or "stock"
    tokens, full_tokens, decoding = capacity(kv_cache, vllm_config)
    groups = "; ".join(_describe(each, active.packed) for each in kv_cache.kv_cache_groups)
    plans = _served_plans(active, layers)
    longest = vllm_config.model_config.max_model_len
    later = f", {decoding:,} once prompts are computed" if decoding > tokens else ""
    stored = "" if active.model_dtype is None else "fp8 "
    head, colon, rest = adapted(active.settings.config, plans, longest=longest).partition(":")
    return (
        f"{head}{beside}{colon}{rest}, backend {kernels};"
        f" {stored}KV cache of {kv_cache.num_blocks} blocks holds {tokens:,} tokens at the longest"
        f" context (full attention {full_tokens:,}){later}; groups: {groups}"
    )


def _served_plans(active: Active, layers: dict[str, Any]) -> list[LayerPlan]:
    """The plans of the served model's layers; two parts are one layer."""
    from vllm.model_executor.models.utils import extract_layer_index

    names = [name for name, layer in layers.items() if not layer.swaa.draft]
    return [active.plans[extract_layer_index(n)] for n in names if not n.endswith(SLIDING)]


class Capacity(NamedTuple):
    """Tokens that fit into a cache, in requests of the longest context.

    Attributes:
        tokens: while each needs the most that it ever needs, as vLLM counts.
        full: the same where every layer stays full.
        decoding: while all requests generate.
    """

    tokens: int
    full: int
    decoding: int


def capacity(kv_cache: Any, vllm_config: Any) -> Capacity:
    """How much a cache holds of requests of the longest context."""
    longest, groups = vllm_config.model_config.max_model_len, kv_cache.kv_cache_groups
    most = full = decoding = 0
    widest = max(sum(spec.page_size_bytes for spec in _each(group)) for group in groups)
    for group in groups:
        spec, each = group.kv_cache_spec, _each(group)
        most += -(-spec.max_memory_usage_bytes(vllm_config) // spec.page_size_bytes)
        decoding += decode_blocks(_first(group), longest)
        if isinstance(_first(group), MambaSpec):
            full += decode_blocks(_first(group), longest)
            continue
        # Without statistics, which lie behind keys and values under decode_keys.
        bare = sum(spec.unpadded_page_size_bytes for spec in each)
        full += -(-longest // spec.block_size) * bare / widest
    blocks = kv_cache.num_blocks
    return Capacity(*(int(blocks / held * longest) for held in (most, full, decoding)))


def _each(group: Any) -> list[Any]:
    """The spec of each layer of a group."""
    spec = group.kv_cache_spec
    own = getattr(spec, "kv_cache_specs", None)
    return [own[name] if own else spec for name in group.layer_names]


def _first(group: Any) -> Any:
    """The spec of its first layer; the group's own where a pipeline stage holds none of them."""
    return next(iter(_each(group)), group.kv_cache_spec)


def _describe(group: Any, packed: bool) -> str:
    each = _each(group)
    if isinstance(_first(group), MambaSpec):
        return f"{len(each)} layers State"
    kind = type(_first(group)).__name__.removesuffix("Spec")
    heads = f"{sum(spec.num_kv_heads for spec in each)} KV heads in " if packed else ""
    return f"{heads}{len(each)} layers {kind}"


def _attention_layers(vllm_config: Any) -> dict[str, Any]:
    known = vllm_config.compilation_config.static_forward_context
    return {name: layer for name, layer in known.items() if hasattr(layer, "swaa")}


def _specs(kv_cache: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in kv_cache.kv_cache_groups:
        found |= zip(group.layer_names, _each(group), strict=True)
    return found


def _fault(layer: Any, spec: Any) -> str | None:
    memory = layer.swaa
    if isinstance(layer.impl, SlidingAttention) == memory.stock:
        return f"its attention is {type(layer.impl).__name__}"
    if not memory.stock and layer.impl.plan != memory.plan:
        return f"its attention follows {layer.impl.plan}"
    if spec is None:
        return "it has no keys in the cache"
    if spec != memory.spec(_stock(spec)):
        return f"its cache is {type(spec).__name__}"
    return None


def _check_count(
    found: list[Any], expected: int, which: str = "layers were found to be adapted"
) -> None:
    if len(found) != expected:
        raise NotActiveError(
            f"swaa is not active: {len(found)} of {expected} {which};"
            " vLLM made the others without asking"
        )


def _check_drafts(runner: Any, layers: dict[str, Any], kv_cache: Any, vllm_config: Any) -> None:
    drafts = {name for name, layer in layers.items() if layer.swaa.draft}
    draft = draft_model(vllm_config)
    if draft is None:
        return
    if not is_attached(vllm_config):
        expected = draft.get_total_num_hidden_layers()
        _check_count(list(drafts), expected, "layers of the draft model were found")
    elif drafts != _drafting(runner):
        raise NotActiveError(
            f"swaa is not active: vLLM drafts with {sorted(_drafting(runner))}, and swaa took"
            f" {sorted(drafts)} for the draft's layers"
        )
    homes = {n for n, group in enumerate(kv_cache.kv_cache_groups) if drafts & {*group.layer_names}}
    if hasattr(runner, "drafter") and homes != {0}:  # the V2 runner uses each layer's own group
        raise NotActiveError(
            "swaa is not active: the draft model's layers are not in the first group of the cache,"
            " and vLLM would let them write where other layers keep their keys"
        )


def _drafting(runner: Any) -> set[str]:
    """Names of the layers by which vLLM's model runner drafts."""
    if hasattr(runner, "drafter"):
        return runner.drafter._draft_attn_layer_names
    return runner.speculator.draft_attn_layer_names


def _stock(spec: Any) -> Any:
    """A full-attention spec of the same sizes, from which the expected spec is made."""
    from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec

    names = AttentionSpec.__dataclass_fields__
    return FullAttentionSpec(
        **{name: getattr(spec, name) for name, field in names.items() if field.init}
    )


def attention_groups(runner: Any) -> list[Any]:
    """The groups of layers that share metadata, from vLLM's model runner."""
    return [group for groups in runner.attn_groups for group in groups]


def _check_group(group: Any, layers: dict[str, Any]) -> None:
    for name in group.layer_names:
        if name in layers and not layers[name].swaa.stock:
            builders = group.metadata_builders
            if not all(isinstance(builder, SlidingMetadataBuilder) for builder in builders):
                raise NotActiveError(f"swaa is not active in layer {name}: {builders} serve it")


def share_prompt_lengths(runner: Any) -> None:
    """Let the metadata builders read the V2 runner's prompt lengths on the host."""
    states = getattr(runner, "req_states", None)  # the V1 runner itself passes them on
    if states is None:
        return
    for group in attention_groups(runner):
        for builder in group.metadata_builders:
            if isinstance(builder, SlidingMetadataBuilder):
                builder.prompt_lengths = states.prompt_len.np
