"""Forward passes that begin in the middle of a model, from hidden states of an earlier pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from swaa.integrations.transformers.support import UnsupportedModelError, attention_modules


def find_decoder_layers(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The decoder layers, from the first to the last.

    Raises:
        UnsupportedModelError: when they are not in one list.
    """
    attention = attention_modules(model)
    depth = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            inside = [set(layer.modules()) for layer in module]
            if all(found in inside[index] for index, found in attention.items()):
                return tuple(module)
    raise UnsupportedModelError(
        f"{type(model).__name__} keeps its decoder layers in no list of {depth}; swaa tune cannot"
        " begin a forward pass in the middle of it"
    )


@contextmanager
def recorded(layers: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Collect what each layer that runs inside the block returns, in order."""
    outputs: list[Any] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _args, output: outputs.append(output))
        for layer in layers
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def restarted(layers: Sequence[nn.Module], first: int, output: Any) -> Iterator[None]:
    """Let layers below ``first`` return ``output`` instead of computing.

    Args:
        layers: all decoder layers.
        first: layer to begin at; 0: nothing is skipped.
        output: what layer ``first - 1`` returned in an earlier pass over the same rows.
    """
    skipped = layers[:first]
    for layer in skipped:
        # On the instance: neither the class nor the module tree changes.
        vars(layer)["forward"] = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        for layer in skipped:
            del vars(layer)["forward"]
