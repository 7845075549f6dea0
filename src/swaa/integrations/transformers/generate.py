"""``generate`` of an adapted model: ties the prompt's end to the cache, which frees keys."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers import Cache, PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.utils.generic import ModelOutput

from swaa.config import LayerPlan, SWAAConfig
from swaa.integrations.transformers.cache import SWAACache
from swaa.integrations.transformers.cache_name import NAMES, cache_argument, cache_in
from swaa.integrations.transformers.fast import graph_sample
from swaa.integrations.transformers.guidance import Unconditional
from swaa.integrations.transformers.passes import implemented, raise_switched
from swaa.integrations.transformers.prompt import (
    DRAFTS,
    PREFIX_TYPES,
    Given,
    check_kept_cache,
    check_mask,
    check_same_text,
    check_virtual_tokens,
    read_given,
    remember_prompt,
    virtual_tokens,
)
from swaa.integrations.transformers.sequences import NoCache, Sequences, calling, current_call
from swaa.integrations.transformers.support import compiled_modules, hides_the_phase
from swaa.phase import Phase, current_phase, declare

OPTIONS = (
    *DRAFTS,
    "use_cache",
    "cache_implementation",
    "is_assistant",
    "prefill_chunk_size",
    "guidance_scale",
)
"""Options of ``generate`` that determine the cache and the first pass."""


class Generate:
    """Stands in for ``model.generate`` on the instance; the class stays as it is.

    Args:
        model: the adapted model.
        plans: the plan of each layer.

    Attributes:
        unsaid: the configuration, until the first call has checked whether anything slides.
    """

    def __init__(self, model: PreTrainedModel, plans: Sequence[LayerPlan]) -> None:
        self.model = model
        self.plans = tuple(plans)
        self.unsaid: SWAAConfig | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own ``generate``, with the same arguments and result."""
        if not implemented(self.model):
            raise_switched(self.model)
        model: Any = self.model
        names = list(inspect.signature(type(model).generate).parameters)[1:]
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        options = self._options(kwargs)
        padding = check_mask(kwargs.get("attention_mask"))
        given = self._check_given(kwargs, options)
        prompt_length, full = self._prompt_length(given, options), current_phase().full
        self._say_idle(prompt_length)
        cache = cache_in(kwargs)
        for name in NAMES:
            kwargs.pop(name, None)
        if isinstance(cache, SWAACache) and not full:
            given = self._make_room_for_tail(cache, given, prompt_length)
        first_end = _first_end(given, kwargs, options)
        sequences = Sequences(prompt_length, first_end=first_end, padding=padding)
        if cache is None and not full:
            cache = self._cache_for(kwargs, options)
            sequences.awaited_by = model if cache is None else None
        if cache is not None:
            kwargs.update(cache_argument(cache))
        if kwargs.get("custom_generate") is graph_sample and kwargs.get("streamer") is not None:
            # generate passes the streamer only to its own methods.
            kwargs["custom_generate"] = partial(graph_sample, streamer=kwargs["streamer"])
        with declare(Phase(full=full)), calling(sequences, cache):
            result = type(model).generate(model, **kwargs)
        if isinstance(cache, Cache) and given.rows == given.tokens:
            remember_prompt(cache, kwargs)
        return _without(cache, result) if isinstance(cache, NoCache) else result

    def _say_idle(self, tokens: int) -> None:
        config, self.unsaid = self.unsaid, None
        if config is not None and config.covers(tokens):
            line = config.idle(f"this prompt of {tokens:,} tokens")
            logging.getLogger("swaa").warning("%s (said of the first call only)", line)

    def batch(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for ``generate_batch``, whose masks have neither sinks nor phases."""
        raise ValueError(
            "continuous batching (generate_batch) builds masks of its own and cannot serve an"
            " adapted model; use generate, or a serving engine"
        )

    def processors(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Stands in for ``_get_logits_processor``: a negative prompt has its own phase."""
        model: Any = self.model
        made = type(model)._get_logits_processor(model, *args, **kwargs)
        return LogitsProcessorList(_guiding(processor) for processor in made)

    def make_cache(self) -> SWAACache | None:
        """A cache that frees keys; None where compiled code could not use it."""
        if compiled_modules(self.model):
            return None
        return SWAACache(self.model.config, self.plans)

    def _options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The generation options that this class needs, as ``generate`` resolves them."""
        passed = kwargs.get("generation_config")
        sources = [
            kwargs,
            {} if passed is None else vars(passed),
            vars(self.model.generation_config),
        ]
        return {
            name: next((s[name] for s in sources if s.get(name) is not None), None)
            for name in OPTIONS
        }

    def _check_given(self, kwargs: dict[str, Any], options: dict[str, Any]) -> Given:
        """Count what was passed, and refuse what would be computed wrongly."""
        drafts, static = _drafts(options), options["cache_implementation"] is not None
        if options["cache_implementation"] == "paged":
            self.batch()
        if drafts and options["guidance_scale"] not in (None, 1):
            raise ValueError(
                "guidance (guidance_scale) continues the negative prompt by drafts that are taken"
                " back: leave out the drafts (an assistant, prompt lookup), or the guidance"
            )
        given = read_given(kwargs)
        if not options["is_assistant"]:
            masked = kwargs.get("attention_mask") is not None
            check_kept_cache(given, masked=masked, drafts=drafts)
            check_same_text(given, kwargs)
        method = virtual_tokens(self.model)
        if method is not None:
            check_virtual_tokens(
                method,
                drafts=drafts,
                prefill_chunk_size=options["prefill_chunk_size"] is not None,
                cache_implementation=static,
                custom_generate=kwargs.get("custom_generate") is not None,
            )
        depends = any(plan.needs_prompt_length for plan in self.plans)
        if depends and not static and hides_the_phase(self.model):
            raise ValueError(
                "the model's forward is compiled and cannot see where the prompt ends, which full"
                " decode or a dense tail depends on: leave it uncompiled and let generate compile"
                " (cache_implementation='static')"
            )
        return given

    def _prompt_length(self, given: Given, options: dict[str, Any]) -> int:
        outer = current_call()
        if options["is_assistant"] and outer is not None:
            # An assistant drafts inside another generate: what follows that prompt is answer.
            return min(given.tokens, outer.prompt_length)
        return given.tokens

    def _cache_for(self, kwargs: dict[str, Any], options: dict[str, Any]) -> Cache | None:
        """A swaa cache, unless ``generate`` or PEFT will make another one."""
        if options["cache_implementation"] is not None:
            return None
        if virtual_tokens(self.model) in PREFIX_TYPES:
            return None
        if options["use_cache"] is False and kwargs.get("inputs_embeds") is None:
            refused = options["prefill_chunk_size"] is not None or _drafts(options)
            return None if refused else NoCache()  # generate itself refuses, and says why
        cache = self.make_cache()
        if options["is_assistant"] and cache is not None:  # its drafts may be cropped again
            cache.activate_past_recording()
        return cache

    def _make_room_for_tail(self, cache: SWAACache, given: Given, prompt_length: int) -> Given:
        """A later turn's dense tail needs every key: recompute the prompt if some were freed."""
        tail = any(plan.dense_tail for plan in self.plans)
        if not (tail and cache.has_evicted() and prompt_length > given.cached):
            return given
        if given.rows != given.tokens:
            raise ValueError(
                "the dense tail of this turn needs keys that the cache has freed: pass the whole"
                " conversation as input_ids, so that the prompt can be recomputed"
            )
        cache.reset()
        return given._replace(cached=0)


def _drafts(options: dict[str, Any]) -> bool:
    return any(options[name] for name in DRAFTS)


def _first_end(given: Given, kwargs: dict[str, Any], options: dict[str, Any]) -> int | None:
    """Slots filled after the first pass; None where only ``generate`` can know."""
    if _drafts(options) or kwargs.get("custom_generate") is not None:
        return None
    chunk = options["prefill_chunk_size"]
    return given.tokens if chunk is None else min(given.tokens, given.cached + chunk)


def _guiding(processor: Any) -> Any:
    """A guidance processor that calls a stand-in for the adapted model; others stay unchanged."""
    if not isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
        return processor
    generate = getattr(processor.model, "generate", None)
    if not isinstance(generate, Generate) or not processor.unconditional_context["first_pass"]:
        return processor
    processor = copy.copy(processor)
    processor.model = Unconditional(generate.model, generate.make_cache)
    return processor


def _without(cache: NoCache, result: Any) -> Any:
    """The result of ``generate`` as it would be without a cache."""
    if not isinstance(result, ModelOutput):
        return result
    return type(result)(**{name: x for name, x in result.items() if x is not cache})
