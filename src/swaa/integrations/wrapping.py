"""Functions of a serving engine that swaa wraps, and the check that each still fits."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from swaa.integrations.refusal import NotActiveError, UnsupportedError

_wrapped: dict[tuple[str, str], str] = {}
"""The engine of each function that was wrapped, by module and path."""


def wrap(
    engine: str,
    module: str,
    path: str,
    wrapper: Callable[..., Any],
    arguments: Sequence[str] = (),
) -> None:
    """Replace a function by ``wrapper(function)``; a second call does nothing.

    Args:
        engine: its name, for messages.
        module: that holds the function.
        path: of the function in the module, such as ``Class.method``.
        wrapper: called with the original function, returns its replacement.
        arguments: that the function must take.

    Raises:
        ImportError: when there is no such module.
        UnsupportedError: when there is no such function, or it takes other arguments.
    """
    *_, name = path.split(".")
    owner = _owner(module, path)
    original = getattr(owner, name, None)
    if original is None:
        raise UnsupportedError(f"{engine} has no {module}.{path} any more; swaa needs it")
    _wrapped[module, path] = engine
    if hasattr(original, "swaa_original"):
        return
    missing = [
        argument for argument in arguments if argument not in inspect.signature(original).parameters
    ]
    if missing:
        raise UnsupportedError(f"{engine}'s {path} takes no {', '.join(missing)} any more")
    held = vars(owner).get(name)
    kind = type(held) if isinstance(held, classmethod | staticmethod) else None
    plain = original if kind is None else held.__func__  # type: ignore[union-attr]
    wrapped: Any = functools.wraps(plain)(wrapper(plain))
    wrapped.swaa_original = plain
    setattr(owner, name, wrapped if kind is None else kind(wrapped))


def check_wrapped(engine: str) -> None:
    """Check that every function that was wrapped still is, perhaps by somebody else in turn.

    Raises:
        NotActiveError: naming the first that is not.
    """
    for (module, path), owner in _wrapped.items():
        if owner == engine and not _is_wrapped(module, path):
            raise NotActiveError(f"swaa is not active: its hook on {module}.{path} was replaced")


def _is_wrapped(module: str, path: str) -> bool:
    found = getattr(_owner(module, path), path.split(".")[-1], None)
    while found is not None:
        if "swaa_original" in vars(getattr(found, "__func__", found)):
            return True
        found = getattr(found, "__wrapped__", None)
    return False


def _owner(module: str, path: str) -> Any:
    owner: Any = importlib.import_module(module)
    for part in path.split(".")[:-1]:
        owner = getattr(owner, part, None)
    return owner
