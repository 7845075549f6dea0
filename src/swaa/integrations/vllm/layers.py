"""What is active in an engine: the plan of each layer, resolved from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swaa.config import LayerPlan
from swaa.integrations.vllm import drafts, settings, support
from swaa.integrations.vllm.kv_cache import Memory


@dataclass(frozen=True)
class Active:
    """A configuration in force in an engine.

    Attributes:
        settings: what was asked for.
        plans: the plan of every decoder layer of the model.
        frees: whether vLLM's cache manager can free what a layer no longer needs.
        draft: whether the layers being built are those of the draft model.
    """

    settings: settings.Settings
    plans: tuple[LayerPlan, ...]
    frees: bool
    draft: bool = False

    @property
    def prompt_length_switch(self) -> int | None:
        """The value for ``rswa_window``: any number makes vLLM pass the prompt lengths on."""
        needed = any(plan.needs_prompt_length for plan in self.plans)
        return self.settings.config.window if needed else None

    def memory(self, attention_class: type[Any], given: Mapping[str, Any]) -> Memory:
        """What a layer does, from the arguments of its constructor.

        Raises:
            UnsupportedError: for a layer that cannot be adapted.
        """
        from vllm.model_executor.layers.attention.attention import Attention
        from vllm.model_executor.models.utils import extract_layer_index

        name = given.get("prefix", "")
        support.check_layer(name, attention_class is Attention, given)
        index = extract_layer_index(name)
        if not self.draft and index >= len(self.plans):
            raise support.UnsupportedError(
                f"swaa: layer {name} is beyond the model's {len(self.plans)} decoder layers"
            )
        return Memory(
            plan=LayerPlan(window=None) if self.draft else self.plans[index],
            draft=self.draft,
            frees=self.frees,
            prompt_only=self.prompt_length_switch is not None
            and not self.settings.publish_generated,
            dense_tail=self.settings.config.dense_tail,
            pages=self.settings.config.decode_keys > 0,
        )


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
    plans = found.plans(model.get_total_num_hidden_layers())
    if all(plan.full for plan in plans):
        raise support.UnsupportedError("swaa: no layer would slide: full_layers names them all")
    hybrid_off = vllm_config.scheduler_config.disable_hybrid_kv_cache_manager
    return Active(found, plans, frees=not hybrid_off, draft=drafts.is_draft(vllm_config))
