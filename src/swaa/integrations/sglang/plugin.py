"""The entry point of SGLang's ``sglang.srt.plugins``: install the hooks, or refuse to serve.

When a plugin fails, SGLang logs that and goes on with full attention. So this module imports
nothing that could fail, and when the hooks cannot be installed it leaves a guard that refuses every
model whose configuration asks for swaa. Other engines are left alone.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

from swaa.integrations.sglang.environment import REQUIRED


def register() -> None:
    """Install the hooks; SGLang calls this in its front end and in every worker.

    Raises:
        RuntimeError: when the hooks cannot be installed; SGLang logs it.
        SystemExit: when they cannot be installed and nothing else could tell the user.
    """
    try:
        importlib.import_module("swaa.integrations.sglang.hooks").install()
    except Exception as error:
        reason = f"swaa cannot be applied to this SGLang: {error}"
        if os.environ.get(REQUIRED) or not _guard(reason):
            raise SystemExit(reason) from error  # an Exception would only be logged
        raise RuntimeError(reason) from error


def _guard(reason: str) -> bool:
    """Make configured models fail while their configuration is made; False if that fails too."""
    try:
        config = importlib.import_module("sglang.srt.configs.model_config").ModelConfig
        original = config.__init__
    except (ImportError, AttributeError):
        return False

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        if getattr(getattr(self, "hf_config", None), "swaa", None) is not None:
            raise RuntimeError(reason)

    config.__init__ = __init__
    return True
