"""What serving engines raise instead of computing something else than was asked for."""

from __future__ import annotations


class UnsupportedError(ValueError):
    """An engine, a model or an option with which swaa does not work; the message says why."""


class NotActiveError(RuntimeError):
    """The engine would not compute what the configuration asks for."""
