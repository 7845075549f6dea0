"""What the user asked of an SGLang engine, found in its model's configuration."""

from __future__ import annotations

import json
from typing import Any

from swaa.config import LayerPlan
from swaa.integrations.settings import (
    KEY,
    Settings,
    carried_by,
    parse,
    read,
    refuse_heads,
    refuse_misplaced,
)

__all__ = ["KEY", "Settings", "find", "parse", "plans_of", "refuse_stray_keys"]

_PLACE = "config.json or --json-model-override-args"


def find(model_config: Any) -> Settings | None:
    """The settings of a model, or None: nobody asked, or every layer stays full.

    ``--json-model-override-args '{"swaa": ...}'`` replaces what the checkpoint's config.json
    carries; SGLang merges both before anybody reads them.

    Args:
        model_config: SGLang's ``ModelConfig``.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a configuration that cannot be read, that names no layer of the model, or
            that names KV heads.
    """
    value = carried_by(model_config)
    if value is None:
        return None
    asked = read(_PLACE, value)
    refuse_heads(asked.config, "SGLang")
    found = asked.fitted(_layers(model_config), logger="sglang.srt.swaa")
    return None if found.config.window is None else found


def plans_of(model_config: Any) -> tuple[LayerPlan, ...]:
    """The plan of each decoder layer; all are full where nothing was asked for."""
    found = find(model_config)
    layers = _layers(model_config)
    return (LayerPlan(window=None),) * layers if found is None else found.plans(layers)


def refuse_stray_keys(overrides: str | dict[str, Any] | None) -> None:
    """Refuse keys of ``--json-model-override-args`` that were meant for swaa but would do nothing.

    Raises:
        ValueError: for a key that is nearly ``"swaa"``, or a knob next to it.
    """
    given = json.loads(overrides or "{}") if isinstance(overrides, str | None) else overrides
    refuse_misplaced("--json-model-override-args", given)


def _layers(model_config: Any) -> int:
    # At hand before ModelConfig has derived its own number of layers.
    return int(model_config.hf_text_config.num_hidden_layers)
