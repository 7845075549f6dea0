"""What a serving engine is asked for under ``"swaa"``: read once, in one form for all workers."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swaa.config import AUTHORS_KEYS, MOST_TOKENS, LayerPlan, SWAAConfig
from swaa.heads import HeadSelection
from swaa.layers import shown
from swaa.recipes import resolve

KEY = "swaa"
"""Key of an engine's own configuration and of a checkpoint's config.json."""

_KNOBS = tuple(field.name for field in dataclasses.fields(SWAAConfig))
_MISPLACED = ("recipe", "publish_generated", "swaa_config", *_KNOBS, *AUTHORS_KEYS)
"""Keys that belong under ``"swaa"``: elsewhere they would not be read."""
_FORMS = "a recipe name, {'recipe': ...} with knobs on top, or the knobs of SWAAConfig"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration for an engine.

    Attributes:
        config: the knobs.
        publish_generated: let keys of the dense tail and of generated tokens into the prefix cache.
            They were computed in their own phase: a later prompt that reuses them has a shorter
            time to first token, but its answer depends on what was served before.
    """

    config: SWAAConfig
    publish_generated: bool = False

    def __post_init__(self) -> None:
        if self.publish_generated and self.config.window is None:
            raise ValueError("publish_generated would do nothing: every layer is full")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, which :func:`parse` reads."""
        return {"recipe": self.config.to_dict(), "publish_generated": self.publish_generated}

    def fitted(
        self, layers: int, *, kv_heads: int | None = None, logger: str = "vllm.swaa"
    ) -> Settings:
        """The same settings for a model of so many layers: others are logged and dropped.

        Args:
            layers: of the model.
            kv_heads: KV heads of each layer; needed where ``full_decode`` names some.
            logger: name of the engine's log.

        Raises:
            ValueError: for a list with no layer, or no KV head, of the model.
        """
        config = self.config.within(layers)
        for name in ("full_layers", "full_decode", "selected_layers"):
            given, left = getattr(self.config, name), getattr(config, name)
            if isinstance(given, HeadSelection):
                assert kv_heads is not None
                left = _fitted_heads(given, layers, kv_heads, logger)
                config = dataclasses.replace(config, full_decode=left)
                continue
            if given == left:
                continue
            lacking = ", ".join(str(index) for index in given if index >= layers)
            if not left:
                raise ValueError(
                    f"swaa: {name} holds {lacking}; the model's last layer is {layers - 1}"
                )
            logging.getLogger(logger).warning(
                "swaa: %s: layers %s left out, the model's last layer is %d",
                *(name, lacking, layers - 1),
            )
        return dataclasses.replace(self, config=config)

    def plans(self, layers: int, kv_heads: int | None = None) -> tuple[LayerPlan, ...]:
        """The plan of each decoder layer; with ``decode_keys`` a full layer is all dense tail.

        Args:
            layers: of the model.
            kv_heads: KV heads of each layer; needed where ``full_decode`` names some.
        """
        each = None if kv_heads is None else [kv_heads] * layers
        return tuple(
            _as_tail(plan) if plan.full and plan.decode_keys else plan
            for plan in self.config.layers(layers, each)
        )


def _fitted_heads(given: HeadSelection, layers: int, kv_heads: int, logger: str) -> HeadSelection:
    """The KV heads among the given that a model has; others are logged."""
    left, lacking = given.within(layers, kv_heads), given.beyond(layers, kv_heads)
    has = f"the model has {layers} layers of {kv_heads} KV heads, counted from 0"
    if not left:
        raise ValueError(f"swaa: full_decode holds KV heads {lacking}; {has}")
    if lacking:
        logging.getLogger(logger).warning(
            "swaa: full_decode: KV heads %s left out, %s", lacking, has
        )
    return left


def refuse_heads(config: SWAAConfig, engine: str) -> None:
    """Refuse KV heads in ``full_decode`` for an engine that serves whole layers only.

    Raises:
        ValueError: naming the heads.
    """
    if isinstance(config.full_decode, HeadSelection):
        raise ValueError(
            f"full_decode names KV heads ({config.full_decode}), which {engine} does not take:"
            " name whole layers there, or serve the recipe by vLLM"
        )


def _as_tail(plan: LayerPlan) -> LayerPlan:
    """A full layer whose generated rows choose what they read, as a sliding layer of full rows."""
    return LayerPlan(
        window=plan.decode_window,
        sink_tokens=plan.sink_tokens,
        full_decode=True,
        dense_tail=MOST_TOKENS,
        decode_keys=plan.decode_keys,
    )


def parse(value: object) -> Settings:
    """Read the value of the key ``"swaa"``.

    >>> parse({"window": 2048, "sink_tokens": 64}).config.describe()
    'window 2048, 64 sinks'

    Args:
        value: a recipe's name or file; a mapping with ``recipe`` (name, file or mapping) and knobs
            that override it; or a mapping with the knobs themselves. A mapping may also hold
            ``publish_generated``.

    Raises:
        TypeError: for anything else.
        ValueError: for unknown keys, recipes or values.
    """
    if isinstance(value, str):
        return Settings(config=resolve(value))
    if not isinstance(value, Mapping):
        raise TypeError(f"'{KEY}' is {shown(value)}; expected {_FORMS}")
    values = dict(value)
    publish = values.pop("publish_generated", False)
    if not isinstance(publish, bool):
        raise TypeError(f"publish_generated is {shown(publish)}; expected true or false")
    if "recipe" not in values:
        return Settings(config=SWAAConfig.from_dict(values), publish_generated=publish)
    recipe = values.pop("recipe")
    unknown = sorted(map(str, values.keys() - set(_KNOBS)))
    if unknown:
        known = ", ".join(("recipe", *_KNOBS, "publish_generated"))
        raise ValueError(f"unknown keys {shown(', '.join(unknown))[1:-1]}; known are {known}")
    return Settings(config=resolve(recipe, **values), publish_generated=publish)


def read(source: str, value: object) -> Settings:
    """As :func:`parse`, with the place that holds the value in every message.

    Args:
        source: that place, in words.
        value: of the key ``"swaa"``.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for unknown keys, recipes or values.
    """
    try:
        return parse(value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"swaa: '{KEY}' in {source}: {error}") from None


def refuse_misplaced(source: str, asked: Mapping[str, Any]) -> None:
    """Refuse keys that were meant for swaa but would not be read.

    Args:
        source: where they were given, in words.
        asked: everything that was given there.

    Raises:
        ValueError: for a key that is nearly ``"swaa"``, or that belongs under it.
    """
    for key in asked:
        if key == KEY:
            continue
        name = str(key).lower().replace("-", "_")
        if difflib.get_close_matches(name, [KEY], cutoff=0.8):
            raise ValueError(f"swaa: {source} holds {shown(key)}; did you mean '{KEY}'?")
        if difflib.get_close_matches(name, _MISPLACED, cutoff=0.9):
            raise ValueError(
                f"swaa: {source} holds {shown(key)} at its top, where nobody reads it;"
                f" put it under '{KEY}'"
            )


def carried_by(model_config: Any) -> object:
    """What a model's own config.json says under ``"swaa"``, or None.

    Args:
        model_config: of an engine; where the model wraps a text model, that one's part of the file
            counts, too.
    """
    for name in ("hf_config", "hf_text_config"):
        carried = getattr(getattr(model_config, name, None), KEY, None)
        if carried is not None:
            return carried
    return None


def carried_in(values: Mapping[str, Any]) -> object:
    """What the values of a config.json say under ``"swaa"``, the text model's included, or None.

    >>> carried_in({"model_type": "qwen3_vl", "text_config": {"swaa": "fast"}})
    'fast'
    """
    text = values.get("text_config")
    carried = values.get(KEY)
    return text.get(KEY) if carried is None and isinstance(text, Mapping) else carried
