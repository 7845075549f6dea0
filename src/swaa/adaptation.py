"""Make a loaded Transformers model slide, and undo it exactly."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from swaa.attention.api import (
    BACKENDS,
    choose_backend,
    make_call,
    require_backend,
    why_not,
)
from swaa.attention.call import AttentionCall, BackendError
from swaa.config import LayerPlan, SWAAConfig
from swaa.integrations.transformers import IMPLEMENTATION
from swaa.integrations.transformers.attention import (
    Backends,
    LayerAttention,
    attach,
    detach,
    pick,
)
from swaa.integrations.transformers.generate import Generate
from swaa.integrations.transformers.passes import Passes
from swaa.integrations.transformers.support import (
    HeadShape,
    Layers,
    UnsupportedModelError,
    execution_device,
    find_layers,
    head_shapes,
    kv_heads_of,
    require_model,
)
from swaa.integrations.transformers.trial import refuse_what_fails, try_out
from swaa.integrations.transformers.warm_up import warm_up as run_ahead
from swaa.recipes import resolve

_ON_INSTANCE = (
    "_swaa_undo",
    "_swaa_adaptation",
    "generate",
    "generate_batch",
    "create_masks_for_generate",
    "_get_logits_processor",
    "_compiled_call",  # made by generate while adapted
)
"""Attributes set on an adapted model, which its class has too or which only swaa uses."""

PROBE_KEYS = 256
"""Keys in the test calls that find out which backends can serve a model."""


@dataclass(frozen=True)
class Adaptation:
    """What is active on a model.

    Attributes:
        config: the configuration.
        plans: what each decoder layer does; layers that cannot slide are full.
        backend: the attention backend that computes prompts on the model's device; also that of
            decoding where it is another one.
        summary: one line for people.
        warm_up_seconds: how long compiling ahead took; None where it was not asked for.
        requested: the backend that was asked for.
    """

    config: SWAAConfig
    plans: tuple[LayerPlan, ...]
    backend: str
    summary: str
    warm_up_seconds: float | None = None
    requested: str = "auto"

    def __repr__(self) -> str:
        """Short: an interactive shell shows what :func:`adapt` returned."""
        return f"<Adaptation: {self.summary}>"


@dataclass(frozen=True)
class _Undo:
    """What :func:`restore` needs to know."""

    implementation: str | None
    config_values: dict[str, Any]
    modules: tuple[torch.nn.Module, ...]
    hooks: tuple[RemovableHandle, ...]
    tried: bool


def adapt(
    model: PreTrainedModel,
    config: SWAAConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    backend: str = "auto",
    warm_up: bool = False,
    trial: bool = True,
    quiet: bool = False,
) -> Adaptation:
    """Make a loaded Transformers model slide, in place.

    No class or module is patched: attention and mask are registered with Transformers, the model
    is switched to them, and ``generate`` is wrapped on the instance. Afterwards ordinary
    ``model.generate(...)`` calls are right in every mode. Where the configuration depends on the
    end of the prompt, direct ``model(...)`` calls declare it with :func:`swaa.prompt_length` or
    :func:`swaa.attention_rows`. Adapting an adapted model replaces its configuration.

    >>> adaptation = swaa.adapt(model, "balanced")  # doctest: +SKIP
    adapted 30 of 32 layers: window 2048, ...

    Args:
        model: a causal language model.
        config: a configuration, a recipe name, the path of a JSON file, or a dictionary. Default:
            what the checkpoint carries (``config.swaa``).
        backend: attention backend, one of ``auto``, ``fa4``, ``triton``, ``sdpa``, ``reference``.
            With one that serves prompts only (``fa4``), the best other one serves decoding.
        warm_up: compile the kernels now, by a short run of ``generate``, rather than at the first
            prompt; the summary says how many seconds it took.
        trial: first run two short prompts through the adapted model, two passes of six tokens,
            and refuse a model whose code does not work with swaa's mask and cache. Adapting an
            adapted model again does not repeat the trial.
        quiet: do not print the summary.

    Returns:
        What is active now.

    Raises:
        TypeError: when ``model`` is not a Transformers model.
        ValueError: for a model that cannot be adapted, with the reason; for a bad configuration;
            for a backend that cannot serve the model.
    """
    require_model(model)
    resolved = _resolve(model, config)
    layers = find_layers(model)
    plans = _plans(resolved, model, layers)
    name, backends = _backends_by_layer(model, layers, plans, backend)
    tried = False
    if is_adapted(model):  # only now: a mistake above leaves the earlier adaptation in force
        tried = vars(model)["_swaa_undo"].tried
        restore(model)
    install = functools.partial(
        _install, model, resolved, layers, plans, backends, tried=trial or tried
    )
    if trial and not tried:
        _install_and_try(model, layers, install)
    else:
        install()
    seconds = run_ahead(model, plans) if warm_up else None
    summary = _summary(resolved, plans, name)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and resolved.covers(limit):
        summary += f"; {resolved.idle(f'all {limit:,} tokens that the model can see')}"
    if seconds is not None:
        summary += f", warmed up in {seconds:.1f} s"
    adaptation = Adaptation(resolved, plans, name, summary, seconds, backend)
    vars(model)["_swaa_adaptation"] = adaptation
    if not quiet:
        print(adaptation.summary)
        vars(model)["generate"].unsaid = resolved
    return adaptation


def is_adapted(model: PreTrainedModel) -> bool:
    """Whether :func:`adapt` is in force on the model."""
    return "_swaa_undo" in vars(model)


def adaptation_of(model: PreTrainedModel) -> Adaptation | None:
    """What :func:`adapt` returned for the model; None if it is not adapted."""
    require_model(model)
    return vars(model).get("_swaa_adaptation")


def bring_back(model: PreTrainedModel, earlier: Adaptation | None) -> None:
    """Give a model back its earlier state, whatever it was adapted to since.

    Args:
        model: adapted or not.
        earlier: what :func:`adaptation_of` returned in that state.
    """
    if earlier is None:
        if is_adapted(model):
            restore(model)
    elif adaptation_of(model) is not earlier:
        adapt(model, earlier.config, backend=earlier.requested, trial=False, quiet=True)
        vars(model)["_swaa_adaptation"] = earlier


def restore(model: PreTrainedModel) -> None:
    """Undo :func:`adapt`: logits, modules, attributes and configuration equal those before.

    Raises:
        ValueError: when the model is not adapted.
    """
    require_model(model)
    if not is_adapted(model):
        raise ValueError("the model is not adapted; there is nothing to restore")
    undo: _Undo = vars(model)["_swaa_undo"]
    model.set_attn_implementation(cast(str, undo.implementation))
    for module in undo.modules:
        detach(module)
    for hook in undo.hooks:
        hook.remove()
    for name in _ON_INSTANCE:
        vars(model).pop(name, None)
    del vars(model.config)["swaa"]
    vars(model.config).update(undo.config_values)


def _resolve(
    model: PreTrainedModel, config: SWAAConfig | Mapping[str, Any] | str | Path | None
) -> SWAAConfig:
    if config is None:
        config = carried_by(model)
        if config is None:
            raise ValueError(
                "no configuration: pass a SWAAConfig or a recipe name, such as 'selected'"
                " (the model's config.json carries no 'swaa')"
            )
    return resolve(config)


def carried_by(model: PreTrainedModel) -> Any:
    """What a model's ``config.json`` says of swaa; ``None``: nothing."""
    return getattr(getattr(model, "config", None), "swaa", None)


def _plans(config: SWAAConfig, model: PreTrainedModel, layers: Layers) -> tuple[LayerPlan, ...]:
    full = LayerPlan(window=None)
    plans = config.layers(layers.depth, kv_heads_of(model, layers))
    plans = tuple(plan if i in layers.full else full for i, plan in enumerate(plans))
    if config.window is not None and all(plan.full and not plan.decode_keys for plan in plans):
        able = ", ".join(map(str, sorted(layers.full)))
        raise ValueError(
            f"no layer would slide: full_layers names all that can (layers {able});"
            " choose other layers, or window=None for full attention"
        )
    return plans


def _backends_by_layer(
    model: PreTrainedModel, layers: Layers, plans: tuple[LayerPlan, ...], requested: str
) -> tuple[str, dict[int, Backends]]:
    """The name to show, and each layer's backends: layers of one shape share one object."""
    shapes = head_shapes(model.config, {**layers.full, **layers.native})
    picked = {
        shape: _pick_backends(model, plans, shape, requested)
        for shape in dict.fromkeys(shapes.values())
    }
    names = {shape.head_dim: name for shape, (name, _) in picked.items()}
    shown = [f"{name} for head_dim {size}" for size, name in names.items()]
    if len(set(names.values())) == 1:
        shown = [*names.values()][:1]
    return " and ".join(shown), {index: picked[shape][1] for index, shape in shapes.items()}


def _pick_backends(
    model: PreTrainedModel, plans: tuple[LayerPlan, ...], shape: HeadShape, requested: str
) -> tuple[str, Backends]:
    """The name to show, and the backends that serve test calls of a layer's own shape."""
    if requested != "auto" and requested not in BACKENDS:
        raise BackendError(
            f"no attention backend {requested!r}; choose from auto, {', '.join(BACKENDS)}"
        )
    if execution_device(model).type == "meta":
        raise UnsupportedModelError("the model's weights are not loaded (meta device)")
    # Selected rows ask the most of a backend, sliding ones more than full ones.
    parts = [part for plan in plans for part in plan.part_plans()]
    plan = max(parts, key=lambda plan: (not plan.full, plan.selected_keys, plan.decode_keys))
    prompt = _probe(model, plan, shape, PROBE_KEYS, static=False)
    decode = _probe(model, plan, shape, 1, static=True)
    name = requested
    if requested == "auto":
        name, refused = choose_backend(prompt)
        for other, reason in refused.items():
            logging.getLogger("swaa").info("backend %s not used: %s", other, reason)
    else:
        require_backend(requested, prompt)
    # With a backend for prompts only, the best other one serves decoding; the summary says so.
    # "auto" stays open: the model may be moved to another device later.
    open_or_able = requested == "auto" or why_not(requested, decode) is None
    decoder = requested if open_or_able else choose_backend(decode).name
    traced = _probe(model, plan, shape, PROBE_KEYS, static=True) if requested == "auto" else prompt
    backends = Backends(requested, decoder, traced=pick(requested, traced))
    shown = choose_backend(decode).name if decoder == "auto" else decoder
    return name if name == shown else f"{name} (decoding: {shown})", backends


def _probe(
    model: PreTrainedModel, plan: LayerPlan, shape: HeadShape, rows: int, *, static: bool
) -> AttentionCall:
    """A call such as layers of a shape will make; ``static`` puts every number into a tensor."""
    heads, kv_heads, head_dim = shape
    keys = PROBE_KEYS
    full_from, full_until = plan.full_rows(keys)
    device = execution_device(model)
    zero = torch.zeros(1, dtype=torch.int32, device=device)
    options: dict[str, Any] = {"dtype": model.dtype, "device": device}
    return make_call(
        torch.empty(1, rows, heads, head_dim, **options),
        torch.empty(1, keys, kv_heads, head_dim, **options),
        torch.empty(1, keys, kv_heads, head_dim, **options),
        window=plan.decode_window if rows == 1 and plan.full else plan.window,
        sink_tokens=plan.sink_tokens,
        full_from=full_from,
        full_until=full_until,
        q_start=zero + keys - rows if static else keys - rows,
        kv_start=zero if static else None,
        selected_keys=plan.selected_keys if rows > 1 else 0,
        decode_keys=plan.decode_keys if rows == 1 else 0,
        decode_from=keys - rows,
    )


def _install(
    model: PreTrainedModel,
    config: SWAAConfig,
    layers: Layers,
    plans: tuple[LayerPlan, ...],
    backends: Mapping[int, Backends],
    *,
    tried: bool,
) -> None:
    modules = {**layers.full, **layers.native}
    implementation = model.config._attn_implementation
    _own_config(model)
    model.set_attn_implementation(IMPLEMENTATION)
    if model.config._attn_implementation != IMPLEMENTATION:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not let its attention implementation be set"
        )
    for index, module in modules.items():
        attach(module, LayerAttention(plans[index], backends[index]))
    passes, generate = Passes(model), Generate(model, plans)
    undo = _Undo(
        implementation=implementation,
        config_values={k: v for k, v in vars(model.config).items() if k == "swaa"},
        modules=tuple(modules.values()),
        hooks=(
            model.register_forward_pre_hook(passes.enter, prepend=True, with_kwargs=True),
            model.register_forward_hook(passes.leave, always_call=True),
        ),
        tried=tried,
    )
    vars(model.config)["swaa"] = config.to_dict()
    vars(model).update(
        _swaa_undo=undo,
        generate=generate,
        generate_batch=generate.batch,
        create_masks_for_generate=passes.masks_ahead,
        _get_logits_processor=generate.processors,
    )


def _own_config(model: PreTrainedModel) -> None:
    """Give the model a configuration that no other model reads."""
    shared, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if vars(module).get("config") is shared:
            vars(module)["config"] = own


def _install_and_try(model: PreTrainedModel, layers: Layers, install: Callable[[], None]) -> None:
    """Install and try the model; where the trial fails, leave the model as it was before."""
    install()
    error = try_out(model, {**layers.full, **layers.native})
    if error is not None:
        restore(model)
        refuse_what_fails(model, error)
        install()


def _summary(config: SWAAConfig, plans: tuple[LayerPlan, ...], backend: str) -> str:
    sliding = sum(not plan.full for plan in plans)
    active = config.within(len(plans)).describe()
    return f"adapted {sliding} of {len(plans)} layers: {active}, backend {backend}"
