"""``generate`` of an adapted model: declares the prompt length and brings a cache that frees."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers import Cache, PreTrainedModel

from swaa.config import LayerPlan
from swaa.integrations.transformers.cache import SWAACache
from swaa.integrations.transformers.fast import graph_sample
from swaa.integrations.transformers.mask import left_padding
from swaa.phase import Phase, current_phase, declare


class Generate:
    """Stands in for ``model.generate`` on the instance; the class stays as it is.

    Args:
        model: the adapted model.
        plans: the plan of each layer.
    """

    def __init__(self, model: PreTrainedModel, plans: Sequence[LayerPlan]) -> None:
        self.model = model
        self.plans = tuple(plans)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own ``generate``; same arguments, same result."""
        inputs = args[0] if args else kwargs.get("inputs")
        _check_mask(kwargs.get("attention_mask"))
        tokens = _prompt_tokens(inputs, kwargs)
        cache = kwargs.get("past_key_values")
        if cache is None:
            made = self._make_cache(self._options(args, kwargs))
            if made is not None:
                kwargs["past_key_values"] = made
        elif isinstance(cache, SWAACache):
            self._make_room_for_tail(cache, inputs, kwargs, tokens)
        outer = current_phase()
        if outer.generating and isinstance(outer.prompt_length, int):
            # An assistant model drafts inside another model's generate: what follows that prompt
            # is answer to it too.
            tokens = min(tokens, outer.prompt_length)
        if kwargs.get("custom_generate") is graph_sample and kwargs.get("streamer") is not None:
            # generate hands the streamer to no method but its own.
            kwargs["custom_generate"] = partial(graph_sample, streamer=kwargs["streamer"])
        with declare(Phase(prompt_length=tokens, generating=True)):
            model: Any = self.model
            return type(model).generate(model, *args, **kwargs)

    def batch(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for ``generate_batch``, whose masks know neither sinks nor phases."""
        raise ValueError(
            "continuous batching (generate_batch) builds masks of its own and cannot serve an"
            " adapted model; use generate, or a serving engine"
        )

    def _options(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The generation options that decide about the cache, as ``generate`` resolves them."""
        passed = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None)
        sources = [
            kwargs,
            {} if passed is None else vars(passed),
            vars(self.model.generation_config),
        ]
        names = ("use_cache", "cache_implementation", "is_assistant")
        return {
            name: next((s[name] for s in sources if s.get(name) is not None), None)
            for name in names
        }

    def _make_cache(self, options: dict[str, Any]) -> SWAACache | None:
        """A cache that frees, unless the caller asked for another one or for none."""
        if options["cache_implementation"] == "paged":
            self.batch()
        if options["use_cache"] is False or options["cache_implementation"] is not None:
            return None
        cache = SWAACache(self.model.config, self.plans)
        if options["is_assistant"]:  # its drafts will be taken back
            cache.activate_past_recording()
        return cache

    def _make_room_for_tail(
        self, cache: SWAACache, inputs: Any, kwargs: dict[str, Any], tokens: int
    ) -> None:
        """A later turn's dense tail needs every key: recompute the prompt if some are gone."""
        if not (cache.has_evicted() and any(plan.dense_tail for plan in self.plans)):
            return
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if ids is None or ids.shape[1] != tokens:
            raise ValueError(
                "the dense tail of this turn needs keys that the cache has freed: pass the whole"
                " conversation as input_ids, so that the prompt can be recomputed"
            )
        cache.reset()


def _check_mask(mask: Any) -> None:
    """Refuse what generation cannot continue: holes, and padding between prompt and answer."""
    if mask is None:
        return
    left_padding(mask)
    empty = (mask == 0).all(-1).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"prompt {empty[0]} of {len(mask)} (from 0) is empty: its attention_mask is 0"
            " everywhere; give it a token, such as the one that begins a text, or leave it out"
        )
    if not bool(mask[:, -1].all()):
        raise ValueError(
            "the prompts are padded on the right, between prompt and answer; pad on the left"
            " (tokenizer.padding_side = 'left')"
        )


def _prompt_tokens(inputs: Any, kwargs: dict[str, Any]) -> int:
    """Slots of the prompt, as generate counts them: the mask spans what the cache already holds."""
    mask, embeds = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
    ids = inputs if inputs is not None else kwargs.get("input_ids")
    if mask is not None:
        return mask.shape[1]
    if embeds is not None:
        return embeds.shape[1]
    if ids is not None:
        return ids.shape[1]
    cache = kwargs.get("past_key_values")
    return 1 + (cache.get_seq_length() if isinstance(cache, Cache) else 0)
