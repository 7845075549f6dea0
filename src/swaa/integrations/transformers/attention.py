"""The attention function that Transformers calls in every layer of an adapted model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from swaa.attention.api import choose_backend, load_backend, make_call, require_backend
from swaa.attention.call import AttentionCall, AttentionOutput
from swaa.attention.heads import join_heads, take_heads
from swaa.attention.operator import attend_compiled, is_plain
from swaa.config import LayerPlan
from swaa.integrations.transformers import IMPLEMENTATION
from swaa.integrations.transformers.mask import FEW_ROWS, RowInfo, swaa_mask

FOREIGN_ARGUMENTS = {
    "s_aux": "learned sink logits",
    "softcap": "soft-capped scores",
    "position_bias": "a bias on the scores",
    "indices": "a sparse indexer",
    "block_indices": "a sparse indexer",
}
"""Arguments of an attention call that change its result and that swaa cannot honour."""


Attend = Callable[[AttentionCall], AttentionOutput]


@dataclass
class Backends:
    """Which backend serves which kind of call of one model.

    ``"auto"`` is resolved once per kind (device, dtype, phase) and remembered. Compiled code calls
    one operator, which makes the choice inside; only calls with gradients are traced, through a
    backend that was chosen before.

    Attributes:
        requested: a backend's name, or ``"auto"``.
        decode: the name of the backend for passes of few rows.
        traced: serves what compiled code must trace.
        chosen: the backend picked for each kind of call.
    """

    requested: str
    decode: str
    traced: Attend
    chosen: dict[Any, Attend] = field(default_factory=dict)

    def run(self, call: AttentionCall) -> Tensor:
        """Serve the call; returns only the output, ``[batch, queries, heads, head_dim]``."""
        few = call.q.shape[1] <= FEW_ROWS
        name = self.decode if few else self.requested
        if torch.compiler.is_compiling():
            return attend_compiled(call, name) if is_plain(call) else self.traced(call).output
        kind = (
            few,
            call.q.device,
            call.q.dtype,
            call.packed,
            call.selects,
            call.decode_keys > 0,
            call.left is None,
            call.full_from is None,
            call.kv_lens is None,
            isinstance(call.kv_start, int),
            isinstance(call.q_start, int),
            torch.is_grad_enabled() and call.q.requires_grad,
        )
        if kind not in self.chosen:
            self.chosen[kind] = pick(name, call)
        return self.chosen[kind](call).output


def pick(requested: str, call: AttentionCall) -> Attend:
    """The function of the requested backend, or of the best one for ``"auto"``.

    Raises:
        BackendError: when the requested backend cannot serve the call.
    """
    if requested == "auto":
        return load_backend(choose_backend(call).name).attend
    require_backend(requested, call)
    return load_backend(requested).attend


@dataclass(frozen=True)
class LayerAttention:
    """What an adapted attention module carries: its layer's plan and the model's backends.

    Attributes:
        plan: of the layer.
        backends: of the model.
        parts: plans of the groups of KV heads that do the same: made here, since compiled code
            cannot make any.
        prompt: what all heads do in prompt rows.
    """

    plan: LayerPlan
    backends: Backends
    parts: tuple[LayerPlan, ...] = field(init=False, repr=False)
    prompt: LayerPlan = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", self.plan.part_plans())
        object.__setattr__(self, "prompt", replace(self.plan, decode_heads=()))


def attach(module: nn.Module, layer: LayerAttention) -> None:
    """Let a module attend as ``layer`` says; replaces what it carried before."""
    vars(module)["swaa_layer"] = layer


def attached(module: nn.Module) -> LayerAttention:
    """What an adapted attention module carries."""
    return vars(module)["swaa_layer"]


def detach(module: nn.Module) -> None:
    """Leave a module as it was before it was adapted."""
    del vars(module)["swaa_layer"]


def swaa_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, with the signature that AttentionInterface asks for.

    Args:
        module: the attention module; carries :class:`LayerAttention` as ``swaa_layer``.
        query: ``[batch, heads, queries, head_dim]``.
        key: ``[batch, kv_heads, keys, head_dim]``.
        value: as ``key``.
        attention_mask: the :class:`RowInfo` of this forward pass.
        dropout: must be zero.
        scaling: factor of the scores.
        kwargs: whatever else the model passes; what would change the result is refused.

    Returns:
        ``[batch, queries, heads, head_dim]``, and None for the weights.

    Raises:
        ValueError: for arguments that cannot be honoured; none is ignored.
    """
    layer: LayerAttention | None = getattr(module, "swaa_layer", None)
    if layer is None:
        raise ValueError(
            "attn_implementation is 'swaa', but the model is not adapted: call swaa.adapt(model)"
        )
    if not isinstance(attention_mask, RowInfo):
        raise ValueError(
            "an adapted model makes its own mask; pass a 2-D attention_mask for padding, or none"
        )
    if dropout:
        raise ValueError(f"attention dropout is {dropout}; set config.attention_dropout to 0")
    if kwargs.get("is_causal") is False:
        raise ValueError("is_causal=False asks for attention in both directions: not supported")
    for name, what in FOREIGN_ARGUMENTS.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"layer {module.layer_idx} uses {what} ({name}): not supported")
    call = _Call(module, attention_mask, scaling, kwargs.get("position_ids"))
    output = _by_heads(layer, call, query, key, value)
    return output.reshape(query.shape[0], query.shape[2], *output.shape[2:]), None


class _Call(NamedTuple):
    """What all parts of a layer's call have in common."""

    module: nn.Module
    rows: RowInfo
    scaling: float | None
    position_ids: Tensor | None


def _by_heads(
    layer: LayerAttention, call: _Call, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Attend part by part where KV heads differ; tensors are ``[batch, heads, tokens, D]``."""
    if not layer.plan.decode_heads:
        return _attend(layer.backends, layer.plan, call, query, key, value)
    stored = call.rows.parts.pop(cast(int, call.module.layer_idx), None)
    if stored is None and call.rows.within_prompts():
        # Prompt rows see the same in all heads, and nothing has been freed yet.
        return _attend(layer.backends, layer.prompt, call, query, key, value)
    kv_heads = key.shape[1] if stored is None else sum(k.shape[1] for k, _ in stored)
    group = query.shape[1] // kv_heads
    heads = layer.plan.part_heads(kv_heads)
    if stored is None:
        stored = tuple(
            (take_heads(key, own, dim=1), take_heads(value, own, dim=1)) for own in heads
        )
    outputs = [
        _attend(layer.backends, plan, call, take_heads(query, own, dim=1, group=group), *tensors)
        for plan, own, tensors in zip(layer.parts, heads, stored, strict=True)
    ]
    return join_heads(outputs, heads, dim=2, group=group)


def _attend(
    backends: Backends, plan: LayerPlan, call: _Call, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Attention of heads that do the same; the output is ``[batch or 1, queries, heads, D]``."""
    arguments = call.rows.arguments(plan, key.shape[2], call.position_ids)
    if "decode_keys" in arguments:
        statistics = call.rows.statistics.get(cast(int, call.module.layer_idx))
        arguments = {**arguments, "page_statistics": statistics}
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if "cu_seqlens_q" in arguments:
        q, k, v = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))
    q, k, v, outside = _out_of_autocast(q, k, v)
    with outside:
        return backends.run(make_call(q, k, v, scale=call.scaling, **arguments))


def _out_of_autocast(
    q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor, AbstractContextManager[object]]:
    """Under autocast, cast as PyTorch's own attention does, then leave autocast.

    There, rotary embeddings leave queries and keys in float32, while values have 16 bits. What a
    backend computes in float32 must stay so: run it inside the returned context manager.
    """
    device = q.device.type
    if not torch.is_autocast_enabled(device):
        return q, k, v, nullcontext()
    dtype = torch.get_autocast_dtype(device)
    q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    return q, k, v, torch.autocast(device, enabled=False)


# In this file, so that unpickling a model that carries a LayerAttention registers them too.
AttentionInterface.register(IMPLEMENTATION, swaa_attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, swaa_mask)
