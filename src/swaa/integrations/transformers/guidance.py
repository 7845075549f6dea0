"""Classifier-free guidance: the negative prompt is a separate text, with its own end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import Cache, PreTrainedModel

from swaa.integrations.transformers.cache_name import NAMES, cache_argument, cache_in
from swaa.phase import Phase, current_phase, declare


class Unconditional:
    """Stands in for the adapted model that a guidance processor calls.

    The processor's first call brings the whole negative prompt; later ones continue it.

    Args:
        model: the adapted model.
        make_cache: makes a cache for the negative prompt; it may return None for a stock one.
    """

    def __init__(self, model: PreTrainedModel, make_cache: Callable[[], Cache | None]) -> None:
        self.model = model
        self.make_cache = make_cache
        self.prompt_length: int | None = None

    def __call__(self, input_ids: Any, *, use_cache: bool, **kwargs: Any) -> Any:
        """Call the model in the phase of the negative prompt."""
        checked, cache = self.prompt_length is not None, cache_in(kwargs)
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
            if use_cache and cache is None:
                cache = self.make_cache()
        full = current_phase().full
        phase = Phase(prompt_length=self.prompt_length, generating=checked, full=full)
        with declare(phase):
            model: Any = self.model
            rest = {name: x for name, x in kwargs.items() if name not in NAMES}
            return model(input_ids, use_cache=use_cache, **cache_argument(cache), **rest)
