"""Which layers: lists and rules such as ``odd`` or ``middle:1/2``, resolved for a model's depth."""

from __future__ import annotations

import contextlib
import math
import re
import reprlib
import warnings
from collections.abc import Sequence
from fractions import Fraction

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 160
_FRACTION = re.compile(r"\d{1,9}(/\d{1,9})?|\d{0,9}\.\d{1,9}")

LayerSelection = tuple[int, ...] | str
"""Layer indices from 0, or a rule that names them once the number of layers is known."""

RULES = (
    "all, odd, even, every:N, every:N+OFFSET, first:F, middle:F, last:F (F a fraction such as 1/4)"
)


def shown(value: object) -> str:
    """A value as messages quote it: one short line, whatever a file or a caller holds.

    >>> shown("odd"), shown(10**5000)
    ("'odd'", 'a very large int')
    """
    try:
        return _SHORT.repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or too many digits for Python
        return f"a very large {type(value).__name__}"


def parse_layers(value: object, *, name: str, instead: str = "") -> LayerSelection:
    """Validate a selection: a sequence of indices, or a rule.

    Args:
        value: ``(1, 3, 5)``, ``[1, 3, 5]`` or a rule; see :data:`RULES`.
        name: the option's name, for messages.
        instead: what else the option takes, for messages.

    Returns:
        A sorted tuple without repetitions, or the rule.

    Raises:
        TypeError: for anything but integers or a rule.
        ValueError: for a negative index or an unknown rule.
    """
    if isinstance(value, str):
        _resolve_rule(value, 1, name, instead)
        return value
    if not isinstance(value, Sequence):
        raise TypeError(
            f"{name} is {shown(value)}; expected {instead}a list of layer indices such as"
            f" [1, 3, 5], or a rule: {RULES}"
        )
    for index in value:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(
                f"{name} holds {shown(index)}, a {type(index).__name__}; expected layer indices"
                f" such as [1, 3, 5] (integers, not text), or a rule: {RULES}"
            )
        if index < 0:
            raise ValueError(f"{name} holds {shown(index)}; layer indices start at 0")
    return tuple(sorted(set(value)))


def resolve_layers(selection: LayerSelection, num_layers: int, *, name: str) -> tuple[int, ...]:
    """Turn a selection into the indices of a model with ``num_layers`` layers.

    Indices after the last layer are dropped with one warning that names them: the paper's own
    settings list layers for the deepest of its models.

    >>> resolve_layers("middle:1/2", 8, name="full_layers")
    (2, 3, 4, 5)
    """
    if isinstance(selection, str):
        return _resolve_rule(selection, num_layers, name)
    beyond = [index for index in selection if index >= num_layers]
    if beyond:
        warnings.warn(
            f"{name}: layers {', '.join(map(str, beyond))} dropped, the model's last layer is"
            f" {num_layers - 1}",
            stacklevel=3,
        )
    return tuple(index for index in selection if index < num_layers)


def _resolve_rule(rule: str, num_layers: int, name: str, instead: str = "") -> tuple[int, ...]:
    word, _, argument = rule.partition(":")
    layers = range(num_layers)
    if rule == "all":
        return tuple(layers)
    if rule in ("odd", "even"):
        return tuple(layers[rule == "odd" :: 2])
    if word == "every":
        step, offset = _every(argument, rule, name)
        return tuple(layers[offset::step])
    if word in ("first", "middle", "last"):
        count = math.floor(_fraction(argument, rule, name) * num_layers + Fraction(1, 2))
        first = {"first": 0, "middle": (num_layers - count) // 2, "last": num_layers - count}[word]
        return tuple(layers[first : first + count])
    raise ValueError(
        f"{name}: unknown rule {shown(rule)}; choose from {instead}{RULES}, or list layer indices"
    )


def _every(argument: str, rule: str, name: str) -> tuple[int, int]:
    step, _, offset = argument.partition("+")
    numbers = (step, offset or "0")
    if all(number.isdecimal() and len(number) < 10 for number in numbers) and int(step) > 0:
        if int(offset or "0") < int(step):
            return int(step), int(offset or "0")
        raise ValueError(f"{name}: {rule!r} picks i % {step} == {offset}; the offset is too large")
    raise ValueError(
        f"{name}: {shown(rule)} is not a rule; write every:4 or every:4+1 (i % 4 == 1)"
    )


def _fraction(argument: str, rule: str, name: str) -> Fraction:
    fraction = Fraction(0)
    if _FRACTION.fullmatch(argument):  # Fraction would compute a huge exponent for minutes
        with contextlib.suppress(ZeroDivisionError):
            fraction = Fraction(argument)
    if not 0 < fraction <= 1:
        raise ValueError(f"{name}: {shown(rule)} needs a fraction in (0, 1], such as middle:1/2")
    return fraction
