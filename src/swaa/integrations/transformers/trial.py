"""A few tokens through an adapted model, before anybody relies on it.

Nothing declares whether a model's code works with what swaa passes to it (a mask that is not a
tensor, a cache of another class): models slice the mask, ask its dtype, bring their own cache. So
it is tried with the model itself: two short prompts, one of them padded, and one further token.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from swaa.attention.api import load_backend
from swaa.config import LayerPlan, SWAAConfig
from swaa.integrations.transformers.attention import Backends, LayerAttention, attach, attached
from swaa.integrations.transformers.support import UnsupportedModelError, execution_device

TOKENS, PADDING = 6, 2
"""Tokens of the longer prompt; how many fewer the other one has."""


def refuse_what_fails(model: PreTrainedModel, error: Exception | None) -> None:
    """Refuse a model for the error that :func:`try_out` found.

    Args:
        model: no longer adapted.
        error: the error of the adapted model; None: it ran.

    Raises:
        UnsupportedModelError: unless the model also fails without swaa: then the error does not
            come from swaa.
    """
    if error is None or try_out(model) is not None:
        return
    reason = " ".join(str(error).split())
    raise UnsupportedModelError(
        f"{type(model).__name__} cannot be adapted: two short prompts, on which the model itself"
        f" runs, end in {type(error).__name__}: {reason:.200} (trial=False adapts it untried)"
    ) from error


def try_out(model: PreTrainedModel, adapted: Mapping[int, nn.Module] | None = None) -> Any:
    """Generate two tokens after short prompts, and discard them.

    Args:
        model: the model itself; its weights are not copied.
        adapted: its adapted attention modules by layer; None: it runs as it is.

    Returns:
        The exception that was raised; None: it ran.
    """
    ids = torch.arange(1, 2 * TOKENS + 1, device=execution_device(model)).view(2, TOKENS)
    mask = torch.ones_like(ids)
    mask[1, :PADDING] = 0
    generate: Any = model.generate
    with _as_trial(model, adapted or {}):
        try:
            generate(
                input_ids=ids % model.config.vocab_size,
                attention_mask=mask,
                max_new_tokens=2,
                min_new_tokens=2,
                do_sample=False,
                num_beams=1,
                disable_compile=True,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models raise exceptions of any kind
            return error
    return None


@contextmanager
def _as_trial(model: PreTrainedModel, adapted: Mapping[int, nn.Module]) -> Iterator[None]:
    """Turn training and compilation off; make windows so short that keys are hidden and freed."""
    plans = _plans(model.config.num_hidden_layers)
    reference = Backends("reference", "reference", traced=load_backend("reference").attend)
    carried = {module: attached(module) for module in adapted.values()}
    training = [module for module in model.modules() if module.training]
    generate: Any = model.generate
    kept = generate.plans if adapted else None
    try:
        model.eval()
        for index, module in adapted.items():
            attach(module, LayerAttention(plans[index], reference))
        if adapted:
            whole = LayerPlan(window=None)
            generate.plans = tuple(
                plan if index in adapted else whole for index, plan in enumerate(plans)
            )
        with warnings.catch_warnings(), _uncompiled():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, layer in carried.items():
            attach(module, layer)
        if adapted:
            generate.plans = kept
        for module in training:
            module.training = True


def _uncompiled() -> AbstractContextManager[object]:
    # Importing the compiler takes seconds; while it is not imported, nothing is compiled.
    imported = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if imported else nullcontext()


def _plans(layers: int) -> tuple[LayerPlan, ...]:
    """Plans with every kind of row and of cache, whatever the model is adapted to afterwards."""
    config = SWAAConfig(
        window=2, sink_tokens=1, dense_tail=1, full_decode=tuple(range(0, layers, 2))
    )
    return config.layers(layers)
