"""Each forward pass of an adapted model gets the phase of its own sequences.

Two hooks on the model mark where a pass begins and ends. For masks that are made before a compiled
pass, ``create_masks_for_generate`` does so, which Transformers calls on the instance.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from swaa.integrations.transformers import IMPLEMENTATION, UNTRACED_IMPLEMENTATION
from swaa.integrations.transformers.cache_name import NAMES, cache_in
from swaa.integrations.transformers.sequences import NoCache, phase_of_pass
from swaa.phase import begin_pass, end_pass


class Passes:
    """The hooks of one adapted model.

    Args:
        model: the adapted model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def enter(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook: find the call that the pass belongs to."""
        if torch.compiler.is_compiling():
            return None  # its masks were made before, or have no phase
        cache = cache_in(kwargs)
        phase = phase_of_pass(self.model, cache, _rows(args, kwargs), kwargs.get("attention_mask"))
        if not implemented(self.model):
            if phase is not None:
                raise_switched(self.model)
            warnings.warn(_switched(self.model), stacklevel=2)
        begin_pass(self, phase)
        if not isinstance(cache, NoCache):
            return None
        return args, {name: x for name, x in kwargs.items() if name not in NAMES}

    def leave(self, _module: Any, _args: tuple[Any, ...], _output: Any) -> None:
        """Forward hook, which must also run after errors."""
        if not torch.compiler.is_compiling():
            end_pass(self)

    def masks_ahead(self, **kwargs: Any) -> Any:
        """The model's own ``create_masks_for_generate``, for the sequences of its cache."""
        own = inspect.getattr_static(type(self.model), "create_masks_for_generate", None)
        create: Any = create_masks_for_generate
        if own is not None:
            create = own.__get__(self.model, type(self.model))
        cache, rows = cache_in(kwargs), kwargs["inputs_embeds"].shape[1]
        phase = phase_of_pass(self.model, cache, rows, kwargs.get("attention_mask"))
        begin_pass(self, phase)
        try:
            return create(**kwargs)
        finally:
            end_pass(self)


def implemented(model: PreTrainedModel) -> bool:
    """Whether the model's attention still goes through swaa."""
    return model.config._attn_implementation in (IMPLEMENTATION, UNTRACED_IMPLEMENTATION)


def raise_switched(model: PreTrainedModel) -> None:
    """Raise because the attention implementation was switched away from swaa.

    Raises:
        ValueError: always.
    """
    raise ValueError(_switched(model))


def _switched(model: PreTrainedModel) -> str:
    return (
        "the model is adapted, but its attention implementation was switched to"
        f" {model.config._attn_implementation!r} since, so that nothing slides: call"
        " swaa.restore(model) for full attention, or swaa.adapt(model, ...) again"
    )


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    inputs = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
    return next((x.shape[1] for x in inputs if isinstance(x, Tensor)), 0)
