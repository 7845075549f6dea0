"""A layer whose KV heads do not all do the same: two parts, each with its own keys in the cache.

vLLM's ``Attention`` is also the place of a layer in the cache: its name, its spec, its group of
layers that share blocks. So the heads whose generated rows are full stay in the layer that the
model built, and those that slide become a second ``Attention`` inside it. To the scheduler, the
cache and our own code both are layers like others; only their model knows them as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.attention.attention import Attention

from swaa.attention.heads import join_heads, take_heads
from swaa.integrations.vllm import backend
from swaa.integrations.vllm.kv_cache import Memory

SLIDING = ".sliding"
"""What the second part's name has after the layer's."""


class HeadwiseAttention(Attention):
    """The heads that keep every key, and within them the others as a layer of their own.

    Attributes:
        sliding: the second part.
        heads: the KV heads of both parts, in order.
    """

    sliding: Attention
    heads: tuple[tuple[int, ...], ...]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output_shape: torch.Size | None = None,
        output_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Attention of all heads, ``[rows, heads * head_size]``: each head in its part."""
        group = self.num_heads // self.num_kv_heads
        outputs: list[Tensor] = []
        for part, heads in zip((self, self.sliding), self.heads, strict=True):
            query_, key_, value_ = (
                take_heads(x.view(x.shape[0], -1, self.head_size), heads, dim=1, group=count)
                for x, count in ((query, group), (key, 1), (value, 1))
            )
            output = Attention.forward(part, query_, key_, value_, output_dtype=output_dtype)
            outputs.append(output.view(-1, part.num_heads, self.head_size))
        joined = join_heads(outputs, self.heads, dim=1, group=group)
        return joined.flatten(1) if output_shape is None else joined.view(output_shape)

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Give both parts the factors of keys and values that a checkpoint has for the layer."""
        super().process_weights_after_loading(act_dtype)
        for name in ("_k_scale", "_v_scale"):
            setattr(self.sliding, name, getattr(self, name).clone())
            setattr(self.sliding, f"{name}_float", getattr(self, f"{name}_float"))


def build(
    layer: Attention, construct: Callable[..., None], given: Mapping[str, Any], memory: Memory
) -> None:
    """Make a new ``Attention`` one of two parts.

    Args:
        layer: as yet without anything in it.
        construct: vLLM's own constructor.
        given: its arguments for all heads of the layer, by name.
        memory: of the layer; its plan names KV heads of this rank.
    """
    kv_heads = given.get("num_kv_heads") or given["num_heads"]
    group = given["num_heads"] // kv_heads
    parts = memory.plan.parts(kv_heads)
    second = Attention.__new__(Attention)
    for each, end, part in zip((layer, second), ("", SLIDING), parts, strict=True):
        own = dataclasses.replace(memory, plan=part.plan)
        changes = {
            "num_heads": group * len(part.heads),
            "num_kv_heads": len(part.heads),
            "prefix": given["prefix"] + end,
            "attn_backend": backend.sliding_backend(own),
        }
        construct(each, **{**given, **changes})
        each.swaa = own
    layer.__class__ = HeadwiseAttention
    layer.heads = tuple(part.heads for part in parts)
    layer.sliding = second
