"""What is active in an engine: the plan of each layer, resolved from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from swaa.config import LayerPlan
from swaa.integrations.vllm import drafts, fp8, settings, support
from swaa.integrations.vllm.kv_cache import Memory


@dataclass(frozen=True)
class Active:
    """A configuration in force in an engine.

    Attributes:
        settings: what was asked for.
        plans: the plan of every decoder layer of the model, with all of its KV heads.
        able: indices of the layers that have keys; linear layers stay as they are.
        kv_heads: of each layer, on all ranks together.
        model_dtype: of the model, where keys are stored in fp8; None: they are stored in it.
        frees: whether vLLM's cache manager can free what a layer no longer needs.
    """

    settings: settings.Settings
    plans: tuple[LayerPlan, ...]
    able: tuple[int, ...]
    kv_heads: int
    frees: bool
    model_dtype: Any = None

    @property
    def prompt_length_switch(self) -> int | None:
        """The value for ``rswa_window``: any number makes vLLM pass the prompt lengths on."""
        needed = any(self.plans[index].needs_prompt_length for index in self.able)
        return self.settings.config.window if needed else None

    @property
    def prompt_only(self) -> bool:
        """Whether only keys of the prompt, its dense tail left out, enter the prefix cache."""
        return self.prompt_length_switch is not None and not self.settings.publish_generated

    @property
    def packed(self) -> bool:
        """Whether KV heads of one layer keep different keys, so that the cache's pages differ."""
        return any(plan.decode_heads for plan in self.plans)

    def memory(
        self, attention_class: type[Any], given: Mapping[str, Any], *, draft: bool = False
    ) -> Memory:
        """What a layer does, from the arguments of its constructor.

        Args:
            attention_class: its class.
            given: arguments of its constructor by name.
            draft: whether it is a layer of a draft.

        Raises:
            UnsupportedError: for a layer that cannot be adapted.
        """
        from vllm.model_executor.layers.attention.attention import Attention
        from vllm.model_executor.models.utils import extract_layer_index

        name = given.get("prefix", "")
        support.check_layer(name, attention_class is Attention, given)
        index = extract_layer_index(name)
        if not draft and index >= len(self.plans):
            raise support.UnsupportedError(
                f"swaa: layer {name} is beyond the model's {len(self.plans)} decoder layers"
            )
        if not draft and index not in self.able:
            raise support.UnsupportedError(
                f"swaa: layer {name} has keys, though its type in layer_types says otherwise"
            )
        plan = LayerPlan(window=None) if draft else self.plans[index]
        if plan.decode_heads:
            plan = self._on_this_rank(plan, name, given.get("num_kv_heads") or given["num_heads"])
        return Memory(
            plan=plan,
            draft=draft,
            frees=self.frees,
            prompt_only=self.prompt_only,
            dense_tail=self.settings.config.dense_tail,
            pages=self.settings.config.decode_keys > 0 and not self.packed,
            packed=self.packed,
            model_dtype=self.model_dtype,
        )

    def _on_this_rank(self, plan: LayerPlan, name: str, kv_heads: int) -> LayerPlan:
        """The plan with those of its KV heads that this tensor-parallel rank holds, from 0."""
        from vllm.distributed import (
            get_tensor_model_parallel_rank,
            get_tensor_model_parallel_world_size,
        )

        if kv_heads * get_tensor_model_parallel_world_size() != self.kv_heads:
            raise support.UnsupportedError(
                f"swaa: layer {name} has {kv_heads} KV heads on this rank and the model"
                f" {self.kv_heads}; full_decode cannot name heads of models whose layers differ"
            )
        first = kv_heads * get_tensor_model_parallel_rank()
        held = [head - first for head in plan.decode_heads if first <= head < first + kv_heads]
        return replace(plan, decode_heads=tuple(held))


_resolved: tuple[tuple[Any, ...], Active | None] | None = None
"""The last configuration that was resolved, and the result."""


def active(vllm_config: Any) -> Active | None:
    """What is active in an engine, or None: swaa was not asked for, or every layer stays full.

    It is resolved once per configuration, though every layer and every request asks for it.

    Raises:
        UnsupportedError: for a model or an option that cannot be served.
        ValueError: for a bad configuration.
    """
    global _resolved
    asked = (vllm_config, vllm_config.model_config, vllm_config.additional_config)
    if _resolved is None or any(a is not b for a, b in zip(asked, _resolved[0], strict=True)):
        _resolved = asked, _resolve(vllm_config)
    return _resolved[1]


def _resolve(vllm_config: Any) -> Active | None:
    model = drafts.served_model(vllm_config)
    if model is None:
        return None
    found = settings.find(vllm_config)
    if found is None or found.config.window is None:
        return None
    support.check_engine(vllm_config)
    support.check_states(vllm_config, found)
    kv_heads = model.get_total_num_kv_heads()
    plans = found.plans(model.get_total_num_hidden_layers(), kv_heads)
    able = support.softmax_layers(model)
    if all(plans[index].full for index in able):
        of = "" if len(able) == len(plans) else f" that can (layers {', '.join(map(str, able))})"
        raise support.UnsupportedError(
            f"swaa: no layer would slide: full_layers names them all{of}"
        )
    hybrid_off = vllm_config.scheduler_config.disable_hybrid_kv_cache_manager
    stored = model.dtype if fp8.stores_fp8(vllm_config) else None
    return Active(found, plans, able, kv_heads, frees=not hybrid_off, model_dtype=stored)
