"""The sizes of a model, from its configuration, without its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from swaa.gguf_reading import read_once

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LayerKind = Literal["full", "sliding", "none"]
"""Softmax attention over everything, over the model's own window, or no softmax attention."""

_KINDS: dict[str, LayerKind] = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "linear_attention": "none",
    "conv": "none",
    "moe": "none",
    "mlp": "none",
}

_GATED = frozenset(
    (
        "gemma3_text",
        "glm4",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    )
)
_EXPERTS = frozenset(("mixtral", "qwen2_moe", "qwen3_moe"))
_LEARNED_SINKS = frozenset(("gpt_oss",))  # in the weights; configurations do not mention them


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """One decoder layer.

    Attributes:
        kind: kind of attention; only ``full`` layers can be adapted.
        window: keys a row of a ``sliding`` layer sees, itself included.
        heads: query heads.
        kv_heads: key/value heads.
        head_dim: of queries, keys and values.
        linear_weights: weights of linear layers that one token is multiplied with, without the
            experts it is not sent to; ``None``: no formula for this family.
    """

    kind: LayerKind
    window: int | None = None
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    linear_weights: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder.

    Attributes:
        model_type: family, as Transformers names it.
        layers: from the first to the last.
        head_weights: weights of the output head, vocabulary times width.
        trained_context: tokens the model was trained to see at once, where known.
        dtype: of the checkpoint, where known.
        swaa: the configuration that the checkpoint carries, where it carries one.
        parameters: number of weights, tied ones counted once; ``None``: not counted.
    """

    model_type: str
    layers: tuple[LayerShape, ...]
    head_weights: int
    trained_context: int | None = None
    dtype: str | None = None
    swaa: Mapping[str, Any] | None = None
    parameters: int | None = None


def read_shape(name: str) -> ModelShape:
    """The shape of a model from its configuration; weights are not read.

    Args:
        name: a folder, its config.json, a hub name, a GGUF file, ``smollm2``, or a shape of
            :data:`swaa.model_shapes.SHAPES`.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ImportError: when a package is missing; the message holds its ``pip install`` line.
        ValueError: for a configuration that cannot be read, and for a model that
            :func:`swaa.adapt` refuses, with the reason.
    """
    from swaa import models

    config = _read_config(name)
    shape = shape_of(config)
    parameters = _parameters(config, name)
    # Dequantised weights have no dtype of their own: take the one that loading gives them here.
    dtype = models.dequantised_dtype() if models.is_gguf(name) else shape.dtype
    return dataclasses.replace(shape, parameters=parameters, dtype=dtype)


def _read_config(name: str) -> PreTrainedConfig:
    from transformers import AutoConfig

    from swaa import models
    from swaa.model_shapes import shape_config

    published = None if Path(name).exists() else shape_config(name)
    if published is not None:
        return published
    options: dict[str, Any] = {"trust_remote_code": False}
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".json":
        location = str(path)
    else:
        source = models.find_model(name)
        location = source.location
        if source.gguf_file is not None:
            models.require_gguf()
            options["gguf_file"] = source.gguf_file
    try:
        with read_once("gguf_file" in options):
            return AutoConfig.from_pretrained(location, **options)
    except ImportError:
        raise
    except Exception as error:  # a broken file fails the loader in ways that it does not declare
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot read the configuration of {name}: {reason:.300}") from error


def _parameters(config: PreTrainedConfig, name: str) -> int:
    """Number of weights, from a model built without their values; refuse one swaa cannot adapt."""
    import torch
    from transformers import AutoModelForCausalLM

    from swaa.integrations.transformers.support import find_layers

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # as above
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot build {name} from its configuration: {reason:.300}") from error
    find_layers(model)
    return sum(weight.numel() for weight in model.parameters())


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """The shape that a Transformers configuration describes.

    Raises:
        ValueError: with the reason, for a model whose cost would come out wrong.
    """
    text = config.get_text_config()
    _refuse(text)
    if text is not config:
        raise ValueError(
            f"{config.model_type} cannot be adapted: it is a composite of several models; price its"
            f" text model alone ({text.model_type})"
        )
    types = _layer_types(text)
    each = getattr(text, "per_layer_config", None) or [text] * len(types)
    layers = tuple(_layer(each[i], i, kind, text.model_type) for i, kind in enumerate(types))
    if not any(layer.kind == "full" for layer in layers):
        raise ValueError(f"{text.model_type} has no full-attention layer; nothing can slide")
    dtype = getattr(text, "dtype", None)
    return ModelShape(
        model_type=text.model_type,
        layers=layers,
        head_weights=text.vocab_size * text.hidden_size,
        trained_context=getattr(text, "max_position_embeddings", None),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        swaa=getattr(config, "swaa", None),
    )


def _refuse(config: Any) -> None:
    reasons = {
        "is_encoder_decoder": "is an encoder-decoder; swaa adapts decoders",
        "kv_lora_rank": "compresses its keys (multi-head latent attention)",
        "index_topk": "selects keys by a sparse indexer",
        "sparse_attention_config": "selects keys by a sparse indexer",
        "attention_chunk_size": "attends within chunks",
        "attn_logit_softcapping": "soft-caps its scores",
        "num_kv_shared_layers": "shares keys and values between layers",
    }
    for option, reason in reasons.items():
        if getattr(config, option, None):
            raise ValueError(f"{config.model_type} cannot be adapted: it {reason} ({option})")
    if config.model_type in _LEARNED_SINKS:
        raise ValueError(f"{config.model_type} cannot be adapted: it has learned sink logits")
    if not getattr(config, "num_hidden_layers", None) or not getattr(config, "vocab_size", None):
        raise ValueError(
            f"{config.model_type} is not a language model: its configuration names no"
            " num_hidden_layers or no vocab_size"
        )


def _layer_types(config: Any) -> list[str]:
    types = getattr(config, "layer_types", None)
    if types is None:
        slides = getattr(config, "sliding_window", None) is not None
        kind = "sliding_attention" if slides else "full_attention"
        types = [kind] * config.num_hidden_layers
    unknown = sorted(set(types) - _KINDS.keys())
    if unknown:
        raise ValueError(
            f"{config.model_type} cannot be adapted: it has layers of type {', '.join(unknown)}"
        )
    return list(types)


def _layer(config: Any, index: int, layer_type: str, model_type: str) -> LayerShape:
    kind = _KINDS[layer_type]
    if kind == "none":
        return LayerShape(kind=kind)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    mlp = _mlp_weights(config, index, model_type)
    projections = config.hidden_size * head_dim * 2 * (heads + kv_heads)
    return LayerShape(
        kind=kind,
        window=config.sliding_window if kind == "sliding" else None,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        linear_weights=None if mlp is None else projections + mlp,
    )


def _mlp_weights(config: Any, index: int, model_type: str) -> int | None:
    """Weights of the gated MLP (gate, up, down), or of the router and the experts in use."""
    width = config.hidden_size
    if model_type in _GATED:
        return 3 * width * config.intermediate_size
    if model_type not in _EXPERTS:
        return None
    sparse_step = getattr(config, "decoder_sparse_step", 1)
    if index in (getattr(config, "mlp_only_layers", None) or ()) or (index + 1) % sparse_step:
        return 3 * width * config.intermediate_size
    inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    used = config.num_experts_per_tok * 3 * width * inner
    shared = getattr(config, "shared_expert_intermediate_size", None) or 0
    gate = width if shared else 0  # the shared expert has a gate of its own
    return used + width * config.num_experts + 3 * width * shared + gate
