"""Which models can be adapted, layer by layer, and the reason for each that cannot."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class UnsupportedModelError(ValueError):
    """The model cannot be adapted; the message says why."""


class Layers(NamedTuple):
    """A model's attention layers.

    Attributes:
        depth: number of decoder layers of any kind.
        full: index and attention module of each softmax layer with full attention.
        native: index and module of each layer that already slides; it stays as it is.
    """

    depth: int
    full: dict[int, nn.Module]
    native: dict[int, nn.Module]


class HeadShape(NamedTuple):
    """The shape of a layer's attention call, except its tokens."""

    heads: int
    kv_heads: int
    head_dim: int


ADAPTABLE_TYPE = "full_attention"
NATIVE_TYPE = "sliding_attention"
FOREIGN_TYPES = ("linear_attention", "conv", "mamba", "moe", "mlp", "recurrent")
"""Layer types without keys and values: they stay as they are."""


def find_layers(model: PreTrainedModel) -> Layers:
    """Find the layers to adapt.

    Raises:
        TypeError: for anything but a loaded Transformers model.
        UnsupportedModelError: with the reason, for a model that swaa would answer wrongly.
    """
    require_model(model)
    refuse_unsupported(model)
    config = model.config
    count = config.num_hidden_layers
    types = getattr(config, "layer_types", None)
    if types is None:
        windows = [getattr(own, "sliding_window", None) for own in layer_configs(config)]
        types = [ADAPTABLE_TYPE if window is None else NATIVE_TYPE for window in windows]
    unknown = sorted(set(types) - {ADAPTABLE_TYPE, NATIVE_TYPE, *FOREIGN_TYPES})
    if unknown:
        raise UnsupportedModelError(f"{_name(model)} has layers of type {', '.join(unknown)}")
    modules = attention_modules(model)
    full = {i: m for i, m in modules.items() if types[i] == ADAPTABLE_TYPE}
    native = {i: m for i, m in modules.items() if types[i] == NATIVE_TYPE}
    missing = [i for i, kind in enumerate(types) if kind == ADAPTABLE_TYPE and i not in full]
    if missing:
        raise UnsupportedModelError(
            f"{_name(model)}: no attention module found in layer {missing[0]}"
        )
    if not full:
        raise UnsupportedModelError(
            f"{_name(model)} has no full-attention layer: every layer slides or has no attention"
        )
    return Layers(count, full, native)


def layer_configs(config: PreTrainedConfig) -> list[Any]:
    """The configuration of each layer: the model's own, unless its layers differ."""
    if getattr(config, "is_heterogeneous", False):
        return list(config.per_layer_config)
    return [config] * config.num_hidden_layers


def head_shapes(config: PreTrainedConfig, modules: Mapping[int, nn.Module]) -> dict[int, HeadShape]:
    """The shape of each attention module, by layer: some models (Gemma 4) have several."""
    configs = layer_configs(config)
    return {index: _head_shape(configs[index], module) for index, module in sorted(modules.items())}


def _head_shape(config: Any, module: nn.Module) -> HeadShape:
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    said = getattr(module, "head_dim", None), getattr(config, "head_dim", None)
    head_dim = next((size for size in said if isinstance(size, int)), config.hidden_size // heads)
    return HeadShape(heads, kv_heads, head_dim)


def kv_heads_of(model: PreTrainedModel, layers: Layers) -> list[int]:
    """KV heads of each decoder layer; 0 where there is no softmax attention."""
    shapes = head_shapes(model.config, {**layers.full, **layers.native})
    return [shapes[i].kv_heads if i in shapes else 0 for i in range(layers.depth)]


def require_model(model: object) -> None:
    """Raise :class:`TypeError` for anything but a loaded Transformers model."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a loaded Transformers model, got {type(model).__name__}")


def attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Softmax attention modules by layer index: those whose code calls the attention interface."""
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        index = getattr(module, "layer_idx", None)
        if not isinstance(index, int) or not _dispatches(type(module)):
            continue
        if index in found:
            raise UnsupportedModelError(
                f"{_name(model)} has two attention modules in layer {index} (one is {name})"
            )
        found[index] = module
    return found


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raise :class:`UnsupportedModelError` for what the mask or the kernels cannot honour."""
    config, name = model.config, _name(model)
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder; swaa adapts decoders")
    if config.get_text_config() is not config:
        raise UnsupportedModelError(
            f"{name} is a composite of several models; swaa adapts text-only decoders"
        )
    if not hasattr(config, "num_hidden_layers"):
        raise UnsupportedModelError(f"{name} is not a plain stack of layers (num_hidden_layers)")
    if not hasattr(model, "generate"):
        raise UnsupportedModelError(f"{name} has no language model head; load it for causal LM")
    if not (getattr(config, "is_causal", True) and all(map(_looks_back, model.modules()))):
        raise UnsupportedModelError(f"{name} attends in both directions")
    if _has(config, "attn_logit_softcapping"):
        raise UnsupportedModelError(f"{name} soft-caps its scores (attn_logit_softcapping)")
    for option in ("index_topk", "sparse_attention_config"):
        if _has(config, option):
            raise UnsupportedModelError(f"{name} selects keys by a sparse indexer ({option})")
    if _has(config, "num_kv_shared_layers"):
        raise UnsupportedModelError(
            f"{name} has layers that read the keys of earlier ones (num_kv_shared_layers), which"
            " those would free or hide"
        )
    if (getattr(config, "n_recurrent_loops", None) or 1) > 1:
        raise UnsupportedModelError(
            f"{name} runs some of its layers several times (n_recurrent_loops), each with keys of"
            " its own"
        )
    if _has(config, "attention_chunk_size"):
        raise UnsupportedModelError(f"{name} attends within chunks (attention_chunk_size)")
    if _has(config, "kv_lora_rank"):
        raise UnsupportedModelError(f"{name} compresses its keys (multi-head latent attention)")
    for where, parameter in model.named_parameters():
        if where.rpartition(".")[2] in ("sinks", "sink", "attention_sink_bias"):
            raise UnsupportedModelError(
                f"{name} has learned sink logits ({where}, shape {tuple(parameter.shape)})"
            )
    if not attention_modules_exist(model):
        raise UnsupportedModelError(
            f"{name} does not send its attention through Transformers' AttentionInterface"
        )


def execution_device(model: PreTrainedModel) -> torch.device:
    """The device on which attention runs; weights that accelerate offloaded are elsewhere."""
    for attention in attention_modules(model).values():
        for module in attention.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
            for parameter in module.parameters(recurse=False):
                if parameter.device.type != "meta":
                    return parameter.device
    return torch.device("meta")


def compiled_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Modules whose forward is compiled, by ``torch.compile`` or ``module.compile()``."""
    return [
        module
        for module in model.modules()
        if isinstance(module, torch._dynamo.OptimizedModule)
        or module._compiled_call_impl is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
    ]


def hides_the_phase(model: PreTrainedModel) -> bool:
    """Whether masks are made in compiled code, which cannot see a phase."""
    attention = set(attention_modules(model).values())
    return any(attention <= set(module.modules()) for module in compiled_modules(model))


def _has(config: PreTrainedConfig, option: str) -> bool:
    """Whether an option is set in any layer."""
    return any(getattr(own, option, None) for own in layer_configs(config))


def attention_modules_exist(model: PreTrainedModel) -> bool:
    """Whether any module's code asks the attention interface for its function."""
    return any(_dispatches(type(module)) for module in model.modules())


def _looks_back(module: nn.Module) -> bool:
    """Whether a module does not attend in both directions (as BERT without ``is_decoder`` does)."""
    return getattr(module, "is_causal", True) is not False or not _dispatches(type(module))


def _dispatches(cls: type) -> bool:
    forward = getattr(cls, "forward", None)
    if forward is None or sys.modules.get(cls.__module__) is None:
        return False
    try:
        return _asks_the_interface(forward)
    except (OSError, TypeError):
        return False


@functools.cache  # reading source takes milliseconds, and it is read for every module of a model
def _asks_the_interface(forward: Callable[..., Any]) -> bool:
    return "ALL_ATTENTION_FUNCTIONS.get_interface(" in inspect.getsource(forward)


def _name(model: PreTrainedModel) -> str:
    return type(model).__name__
