"""Drafts of speculative decoding that have layers: left full, their keys in one group of the cache.

A draft model is a separate model in the same engine; an attached draft (EAGLE, EAGLE-3, MTP) is a
few layers that read the served model's hidden states. Their layers see every key: proposals only
decide how many rows the served model verifies at once, and what those rows see depends on their
position. All share the blocks of one cache, so the draft's group is made here: vLLM's V1 model
runner (0.32, 0.33: ``GPUModelRunner._build_attention_metadata``) always gives a draft model the
block table of the first group, and its proposer allows only one group for the draft's layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

ATTACHED = ("eagle", "eagle3", "mtp")
"""Speculative methods whose layers read the served model's hidden states."""


def served_model(vllm_config: Any) -> Any:
    """The configuration of the model that answers, even while vLLM builds the draft."""
    model = vllm_config.model_config
    if is_draft(vllm_config):
        return vllm_config.speculative_config.target_model_config
    return model


def is_draft(vllm_config: Any) -> bool:
    """Whether this is the configuration from which a draft model is built."""
    return getattr(vllm_config.model_config, "runner_type", None) == "draft"


def builds_draft(vllm_config: Any) -> bool:
    """Whether vLLM is building a draft: of one that is attached the configuration does not tell."""
    if is_draft(vllm_config):
        return True
    from vllm.compilation import backends

    return is_attached(vllm_config) and backends.model_tag == "eagle_head"


def is_attached(vllm_config: Any) -> bool:
    """Whether an engine has a draft that reads the served model's hidden states."""
    speculative = vllm_config.speculative_config
    return speculative is not None and speculative.method in ATTACHED


def draft_model(vllm_config: Any) -> Any | None:
    """The configuration of an engine's draft, or None if it has none with layers."""
    speculative = vllm_config.speculative_config
    if speculative is None or speculative.method not in ("draft_model", *ATTACHED):
        return None
    return speculative.draft_model_config


def keep_together(groups: list[Any], specs: Mapping[str, Any]) -> list[Any]:
    """Cache groups with the layers of the draft in one group, which comes first.

    All layers that keep what the draft keeps join that group. The others are distributed again to
    groups of its size, so that a block holds equally many layers in every group, and no layer of
    those that keep all keys is padding.

    Args:
        groups: vLLM's groups of one engine.
        specs: cache specs of all layers by name, in vLLM's order.

    Returns:
        The groups; unchanged where they already fit or there is no draft.
    """
    drafts = {name for name, spec in specs.items() if is_drafts(spec)}
    homes = [group for group in groups if drafts & set(group.layer_names)]
    if len(homes) > 1:
        groups = _deal(groups, homes, list(specs))
    return sorted(groups, key=lambda group: not drafts & set(group.layer_names))


def is_drafts(spec: Any) -> bool:
    """Whether a cache spec is that of a draft's layer; other specs than ours do not tell."""
    return getattr(spec, "draft", False)


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
        # Like vLLM, put neighbours into different groups, so that pipeline stages get equal parts.
        dealt += [dataclasses.replace(like, layer_names=names[n::count]) for n in range(count)]
    return dealt
