"""The draft model of speculative decoding: left full, its keys in one group of the cache.

A draft is a model of its own in the same engine. Its layers see every key: what it proposes only
decides how many rows the served model verifies at once, and those rows follow their own position.
Both models share the blocks of one cache, so the draft's group is made here: vLLM's V1 model runner
(0.32, 0.33: ``GPUModelRunner._build_attention_metadata``) hands a draft model the block table of
the first group, whichever its layers are in, and its proposer allows them a single group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

PREFIX = "draft_model."
"""What vLLM's runners put before the names of a draft model's layers."""


def served_model(vllm_config: Any) -> Any:
    """The configuration of the model that answers, also where vLLM builds its draft."""
    model = vllm_config.model_config
    if is_draft(vllm_config):
        return vllm_config.speculative_config.target_model_config
    return model


def is_draft(vllm_config: Any) -> bool:
    """Whether this is the configuration that a draft model is built under."""
    return getattr(vllm_config.model_config, "runner_type", None) == "draft"


def draft_model(vllm_config: Any) -> Any | None:
    """The configuration of an engine's draft model, or None: no model of its own drafts."""
    speculative = vllm_config.speculative_config
    if speculative is None or speculative.method != "draft_model":
        return None
    return speculative.draft_model_config


def keep_together(groups: list[Any], specs: Mapping[str, Any]) -> list[Any]:
    """Cache groups with the layers of the draft model in one, which comes first.

    All layers that keep what the draft keeps join it, and the others are dealt anew to groups of
    its width: a block then holds as many layers in every group, and of those that keep all keys
    none is padding.

    Args:
        groups: vLLM's, of one engine.
        specs: cache specs of all layers by name, in vLLM's order.

    Returns:
        The groups as they were where they already fit, or where nothing drafts.
    """
    drafts = {name for name in specs if name.startswith(PREFIX)}
    homes = [group for group in groups if drafts & set(group.layer_names)]
    if len(homes) > 1:
        groups = _deal(groups, homes, list(specs))
    return sorted(groups, key=lambda group: not drafts & set(group.layer_names))


def _deal(groups: list[Any], homes: list[Any], order: list[str]) -> list[Any]:
    kinds: list[tuple[Any, set[str]]] = []
    for group in groups:
        for like, names in kinds:
            if like.kv_cache_spec == group.kv_cache_spec:
                names.update(group.layer_names)
                break
        else:
            kinds.append((group, set(group.layer_names)))
    at_home = [home.kv_cache_spec for home in homes]
    width = max(len(names) for like, names in kinds if like.kv_cache_spec in at_home)
    dealt: list[Any] = []
    for like, unordered in kinds:
        names = [name for name in order if name in unordered]
        count = -(-len(names) // width)
        # As vLLM deals: neighbours into different groups, so that pipeline stages get equal parts.
        dealt += [dataclasses.replace(like, layer_names=names[n::count]) for n in range(count)]
    return dealt
