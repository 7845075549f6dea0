"""Cheap long prompts for pretrained full-attention models: sliding window attention adaptation.

``swaa.adapt(model, "balanced")`` makes a loaded Transformers model slide, and
``swaa.restore(model)`` undoes it exactly. An adapted model computes its attention by
:func:`swaa.swaa_attention`. ``swaa.load(name, recipe)`` loads and adapts in one call;
``with swaa.adapted(model, recipe):`` adapts for one block of code.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from swaa.config import LayerPlan, SWAAConfig

if TYPE_CHECKING:
    from swaa.adaptation import Adaptation, adapt, is_adapted, restore
    from swaa.attention import AttentionOutput, swaa_attention
    from swaa.phase import attention_rows, prompt_length
    from swaa.recipes import list_recipes, load_recipe
    from swaa.shortcuts import adapted, load

__version__ = "0.1.0"

_LAZY = {
    "Adaptation": "swaa.adaptation",
    "adapt": "swaa.adaptation",
    "is_adapted": "swaa.adaptation",
    "restore": "swaa.adaptation",
    "AttentionOutput": "swaa.attention",
    "swaa_attention": "swaa.attention",
    "attention_rows": "swaa.phase",
    "prompt_length": "swaa.phase",
    "list_recipes": "swaa.recipes",
    "load_recipe": "swaa.recipes",
    "adapted": "swaa.shortcuts",
    "load": "swaa.shortcuts",
}

__all__ = [
    "Adaptation",
    "AttentionOutput",
    "LayerPlan",
    "SWAAConfig",
    "__version__",
    "adapt",
    "adapted",
    "attention_rows",
    "is_adapted",
    "list_recipes",
    "load",
    "load_recipe",
    "prompt_length",
    "restore",
    "swaa_attention",
]


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import: load them when first needed.
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if not name.startswith("_") and importlib.util.find_spec(f"swaa.{name}") is not None:
        return importlib.import_module(f"swaa.{name}")  # swaa.models, after `import swaa` alone
    raise AttributeError(f"module 'swaa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
