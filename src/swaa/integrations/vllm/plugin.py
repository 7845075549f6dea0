"""The entry point of vLLM's ``vllm.general_plugins``: install the hooks, or refuse to serve.

When a plugin fails to load, vLLM logs that and goes on with full attention. So this module imports
nothing that could fail, and when the hooks cannot be installed it leaves a guard that refuses every
engine whose configuration asks for swaa. Other engines are left alone.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

from swaa.integrations.vllm.environment import REQUIRED


def register() -> None:
    """Install the hooks; vLLM calls this in its front end, its engine core and every worker.

    Raises:
        RuntimeError: when the hooks cannot be installed and nothing else could tell the user.
    """
    try:
        importlib.import_module("swaa.integrations.vllm.hooks").install()
    except Exception as error:
        reason = f"swaa cannot be applied to this vLLM: {error}"
        if os.environ.get(REQUIRED) or not _guard(reason):
            raise RuntimeError(reason) from error


def _guard(reason: str) -> bool:
    """Make configured engines fail while their configuration is made; False if that fails too."""
    try:
        arguments = importlib.import_module("vllm.engine.arg_utils").EngineArgs
        original = arguments.create_engine_config
    except (ImportError, AttributeError):
        return False

    @functools.wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(self, *args, **kwargs)
        if is_configured(made):
            raise RuntimeError(reason)
        return made

    arguments.create_engine_config = create_engine_config
    return True


def is_configured(vllm_config: Any) -> bool:
    """Whether the command line or the checkpoint asks for swaa."""
    additional = getattr(vllm_config, "additional_config", None)
    if isinstance(additional, dict) and additional.get("swaa") is not None:
        return True
    model = getattr(vllm_config, "model_config", None)
    parts = (getattr(model, name, None) for name in ("hf_config", "hf_text_config"))
    return any(getattr(part, "swaa", None) is not None for part in parts)
