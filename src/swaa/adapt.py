"""Make a loaded Transformers model slide, and undo it exactly."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from swaa.attention.api import BACKENDS, choose_backend, load_backend, make_call, require_backend
from swaa.attention.call import BackendError
from swaa.config import LayerPlan, SWAAConfig
from swaa.integrations.transformers import IMPLEMENTATION
from swaa.integrations.transformers.attention import LayerAttention, swaa_attention_forward
from swaa.integrations.transformers.generate import Generate
from swaa.integrations.transformers.mask import swaa_mask
from swaa.integrations.transformers.support import Layers, UnsupportedModelError, find_layers

_MISSING = object()


@dataclass(frozen=True)
class Adaptation:
    """What is active on a model.

    Attributes:
        config: the configuration.
        plans: what each decoder layer does; layers that cannot slide are full.
        backend: the attention backend of a prompt's forward pass on the model's device.
        summary: one line for people.
    """

    config: SWAAConfig
    plans: tuple[LayerPlan, ...]
    backend: str
    summary: str


@dataclass(frozen=True)
class _Undo:
    """What :func:`restore` needs to know."""

    implementation: str
    config_value: Any
    modules: tuple[torch.nn.Module, ...]


def adapt(
    model: PreTrainedModel,
    config: SWAAConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    backend: str = "auto",
    quiet: bool = False,
) -> Adaptation:
    """Make a loaded Transformers model slide, in place.

    No class or module is patched: attention and mask are registered with Transformers, the model
    is switched to them, and ``generate`` is wrapped on the instance. Afterwards ordinary
    ``model.generate(...)`` is right, whatever its mode; direct ``model(...)`` calls declare the
    prompt's end with :func:`swaa.prompt_length` or :func:`swaa.attention_rows` where the
    configuration depends on it. Adapting an adapted model replaces its configuration.

    >>> adaptation = swaa.adapt(model, "balanced")  # doctest: +SKIP
    adapted 30 of 32 layers: window 2048, ...

    Args:
        model: a causal language model.
        config: a configuration, a recipe name, the path of a JSON file, or a dictionary. Default:
            what the checkpoint carries (``config.swaa``).
        backend: attention backend, one of ``auto``, ``fa4``, ``triton``, ``sdpa``, ``reference``.
        quiet: do not print the summary.

    Returns:
        What is active now.

    Raises:
        TypeError: when ``model`` is no Transformers model.
        ValueError: for a model that cannot be adapted, with the reason; for a bad configuration;
            for a backend that cannot serve the model.
    """
    resolved = _resolve(model, config)
    if is_adapted(model):
        restore(model)
    layers = find_layers(model)
    plans = _plans(resolved, layers)
    name = _pick_backend(model, plans, backend)
    _install(model, resolved, layers, plans, backend)
    adaptation = Adaptation(resolved, plans, name, _summary(resolved, plans, name))
    if not quiet:
        print(adaptation.summary)
    return adaptation


def is_adapted(model: PreTrainedModel) -> bool:
    """Whether :func:`adapt` is in force on the model."""
    return "_swaa_undo" in vars(model)


def restore(model: PreTrainedModel) -> None:
    """Undo :func:`adapt`: logits, modules, attributes and configuration equal those before.

    Raises:
        ValueError: when the model is not adapted.
    """
    if not is_adapted(model):
        raise ValueError("the model is not adapted; there is nothing to restore")
    undo: _Undo = vars(model)["_swaa_undo"]
    model.set_attn_implementation(undo.implementation)
    for module in undo.modules:
        del module.swaa_layer
    # A compiled forward pass that generate made while adapted belongs to the adaptation.
    for name in ("_swaa_undo", "generate", "generate_batch", "_compiled_call"):
        vars(model).pop(name, None)
    if undo.config_value is _MISSING:
        del model.config.swaa
    else:
        model.config.swaa = undo.config_value


def _resolve(
    model: PreTrainedModel, config: SWAAConfig | Mapping[str, Any] | str | Path | None
) -> SWAAConfig:
    if config is None:
        config = getattr(getattr(model, "config", None), "swaa", None)
        if config is None:
            raise ValueError(
                "no configuration: pass a SWAAConfig or a recipe name"
                " (the model's config.json carries no 'swaa')"
            )
    if isinstance(config, SWAAConfig):
        return config
    if isinstance(config, Mapping):
        return SWAAConfig.from_dict(config)
    from swaa.recipes import load_recipe  # reads files: only when a name was given

    return load_recipe(str(config))


def _plans(config: SWAAConfig, layers: Layers) -> tuple[LayerPlan, ...]:
    full = LayerPlan(window=None)
    plans = config.layers(layers.count)
    return tuple(plan if i in layers.full else full for i, plan in enumerate(plans))


def _pick_backend(model: PreTrainedModel, plans: tuple[LayerPlan, ...], backend: str) -> str:
    """The backend of a prompt's forward pass, asked with a call of the model's own shape."""
    if backend != "auto" and backend not in BACKENDS:
        raise BackendError(
            f"no attention backend {backend!r}; choose from auto, {', '.join(BACKENDS)}"
        )
    config = model.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    plan = next((plan for plan in plans if not plan.full), plans[0])
    full_from, full_until = plan.full_rows(256)
    dtype, device = model.dtype, model.device
    if device.type == "meta":
        raise UnsupportedModelError("the model's weights are not loaded (meta device)")
    call = make_call(
        torch.empty(1, 256, heads, head_dim, dtype=dtype, device=device),
        torch.empty(1, 256, kv_heads, head_dim, dtype=dtype, device=device),
        torch.empty(1, 256, kv_heads, head_dim, dtype=dtype, device=device),
        window=plan.window,
        sink_tokens=plan.sink_tokens,
        full_from=full_from,
        full_until=full_until,
    )
    if backend != "auto":
        require_backend(backend, call)
        return backend
    choice = choose_backend(call)
    load_backend(choice.name)
    for name, reason in choice.refused.items():
        logging.getLogger("swaa").info("backend %s not used: %s", name, reason)
    return choice.name


def _install(
    model: PreTrainedModel,
    config: SWAAConfig,
    layers: Layers,
    plans: tuple[LayerPlan, ...],
    backend: str,
) -> None:
    AttentionInterface.register(IMPLEMENTATION, swaa_attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, swaa_mask)
    modules = {**layers.full, **layers.native}
    undo = _Undo(
        implementation=model.config._attn_implementation,
        config_value=getattr(model.config, "swaa", _MISSING),
        modules=tuple(modules.values()),
    )
    model.set_attn_implementation(IMPLEMENTATION)
    if model.config._attn_implementation != IMPLEMENTATION:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not let its attention implementation be set"
        )
    chosen: dict[Any, str] = {}
    for index, module in modules.items():
        module.swaa_layer = LayerAttention(plans[index], backend, chosen)
    model.config.swaa = config.to_dict()
    generate = Generate(model, plans)
    vars(model).update(_swaa_undo=undo, generate=generate, generate_batch=generate.batch)


def _summary(config: SWAAConfig, plans: tuple[LayerPlan, ...], backend: str) -> str:
    sliding = sum(not plan.full for plan in plans)
    return f"adapted {sliding} of {len(plans)} layers: {config.describe()}, backend {backend}"
