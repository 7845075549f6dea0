"""Decoder layers through torch.compile: the code between two attention calls is fused.

Without it, a long prompt spends more time on reading and writing intermediate tensors than on
sliding attention. The code between two attention calls is compiled once for all layers. The cache
is updated outside of it, next to attention: compiled code sees neither the number of keys nor the
index of its layer, so it is not compiled again while the cache grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from swaa.integrations.transformers import UNTRACED_IMPLEMENTATION
from swaa.integrations.transformers.attention import swaa_attention_forward
from swaa.integrations.transformers.cache_name import NAMES, cache_in
from swaa.integrations.transformers.mask import swaa_mask
from swaa.integrations.transformers.support import UnsupportedModelError, attention_modules

MOST_SHAPES = 64
"""Most shapes that are compiled; for further ones a layer runs uncompiled."""


@contextmanager
def compiled_layers(
    model: PreTrainedModel, *, backend: str | Callable[..., Any] = "inductor"
) -> Iterator[None]:
    """Compile the decoder layers of an adapted model inside the block, for inference.

    Every new shape of a forward pass (chunk length, batch) is compiled again: use few shapes.

    Args:
        model: adapted; do not adapt or restore it inside the block.
        backend: of torch.compile.

    Raises:
        UnsupportedModelError: for a model whose layers cannot be found.
    """
    layers = decoder_layers(model)
    AttentionInterface.register(UNTRACED_IMPLEMENTATION, untraced_attention_forward)
    AttentionMaskInterface.register(UNTRACED_IMPLEMENTATION, swaa_mask)
    implementation = model.config._attn_implementation
    assert implementation is not None
    model.set_attn_implementation(UNTRACED_IMPLEMENTATION)
    for layer in layers:
        vars(layer)["forward"] = _compiled(layer.forward, backend)
    try:
        with dynamo_config.patch(recompile_limit=MOST_SHAPES):
            yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]
        model.set_attn_implementation(implementation)


def decoder_layers(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The modules that each hold one attention module, from the first layer to the last.

    Raises:
        UnsupportedModelError: when there is no list of such modules.
    """
    attention = attention_modules(model)
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or set(attention) != set(range(len(module))):
            continue
        children = list(module)
        if all(attention[i] in list(child.modules()) for i, child in enumerate(children)):
            return children
    raise UnsupportedModelError(
        f"{type(model).__name__} has no list of decoder layers that could be compiled one by one"
    )


class _NotYet:
    """Stands in for the cache in compiled code: passes new keys on to where it is updated."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


_NOT_YET = _NotYet()
_CACHE: ContextVar[Any] = ContextVar("swaa_cache", default=None)


@torch.compiler.disable
def untraced_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Update the cache, then attend; see :func:`swaa_attention_forward`."""
    cache = _CACHE.get()
    if cache is not None:
        layer: Any = module
        key, value = cache.update(key, value, layer.layer_idx)
    return swaa_attention_forward(module, query, key, value, mask, **kwargs)


def _compiled(forward: Callable[..., Any], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    options: dict[str, Any] = {"guard_filter_fn": _without_index}
    compiled = torch.compile(forward, backend=backend, dynamic=False, options=options)

    def call(*args: Any, **kwargs: Any) -> Any:
        cache = cache_in(kwargs)
        token = _CACHE.set(cache)
        try:
            passed = {name: _NOT_YET for name in NAMES if kwargs.get(name) is not None}
            return compiled(*args, **(kwargs | passed))
        finally:
            _CACHE.reset(token)

    return call


def _without_index(guards: Sequence[Any]) -> list[bool]:
    """Let one compiled layer serve all: ignore guards on the index of its module."""
    return [not guard.name.endswith("layer_idx") for guard in guards]
