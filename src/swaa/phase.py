"""Where the prompt ends: declared by whoever knows it, never guessed from shapes.

One query row is not "decoding": chunked prefill may end in a chunk of one token, and speculative
decoding verifies several. So the phase is passed. ``generate`` of an adapted model ties it to the
cache of its own sequences; direct ``model(...)`` calls use :func:`prompt_length` or
:func:`attention_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor


class Phase(NamedTuple):
    """What is known about the rows of a forward pass.

    Attributes:
        prompt_length: slots of the prompt, padding included; a tensor gives one per sequence.
        rows: bool ``[batch, tokens]``, True where a row is an answer token; overrides
            ``prompt_length``.
        generating: whether swaa's ``generate`` runs, which has checked the prompts' mask.
        full: every row of every adapted layer sees everything, whatever the configuration.
        longest: tokens of the longest prompt without padding; None if not counted.
    """

    prompt_length: int | Tensor | None = None
    rows: Tensor | None = None
    generating: bool = False
    full: bool = False
    longest: int | None = None


class _Pass(NamedTuple):
    """A forward pass under way: its module, the phase of its sequences, and the pass around it."""

    module: object
    phase: Phase | None
    outer: _Pass | None


_DECLARED: ContextVar[Phase | None] = ContextVar("swaa_declared", default=None)
_PASS: ContextVar[_Pass | None] = ContextVar("swaa_pass", default=None)
_FULL_BLOCKS: list[None] = []  # compiled code cannot read context variables, but guards on a list


def current_phase() -> Phase:
    """The phase of the forward pass under way; an empty one when nobody declared it.

    A phase declared around the call comes before the one given to :func:`begin_pass`. Code inside
    torch.compile cannot read either (a compiled graph would keep the first one for ever), so there
    the phase is always empty.

    Raises:
        ValueError: inside torch.compile while a :func:`full_attention` block is open.
    """
    if torch.compiler.is_compiling():
        if _FULL_BLOCKS:
            raise ValueError("compiled code cannot see full_attention(): call the model uncompiled")
        return Phase()
    declared = declared_phase()
    if declared is not None:
        return declared
    under_way = _PASS.get()
    return (under_way and under_way.phase) or Phase()


def declared_phase() -> Phase | None:
    """What was declared around this call, if anything was."""
    phase = _DECLARED.get()
    if phase is None or (phase.prompt_length is None and phase.rows is None and not phase.full):
        return None
    return phase


@contextmanager
def declare(phase: Phase) -> Iterator[None]:
    """Declare a phase for the forward passes inside the block; an empty one hides earlier ones."""
    token = _DECLARED.set(phase)
    try:
        yield
    finally:
        _DECLARED.reset(token)


def begin_pass(module: object, phase: Phase | None) -> None:
    """Set the phase of the sequences in a module's forward pass, until :func:`end_pass`."""
    _PASS.set(_Pass(module, phase, _PASS.get()))


def end_pass(module: object) -> None:
    """End the forward pass that :func:`begin_pass` began."""
    under_way = _PASS.get()
    if under_way is not None and under_way.module is module:
        _PASS.set(under_way.outer)


@contextmanager
def prompt_length(tokens: int | Tensor) -> Iterator[None]:
    """Declare where the prompt ends, for direct ``model(...)`` calls.

    Rows before ``tokens`` slide, except the dense tail; later rows follow ``full_decode``.

    >>> with swaa.prompt_length(ids.shape[1]):  # doctest: +SKIP
    ...     logits = model(ids).logits

    Args:
        tokens: slots of the prompt, left padding included; an int, or an integer tensor
            ``[batch]`` when the sequences differ.

    Raises:
        TypeError: for anything else.
        ValueError: for a negative number.
    """
    if isinstance(tokens, Tensor):
        if tokens.ndim != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise TypeError(
                f"prompt_length got a {tokens.dtype} tensor of shape {tuple(tokens.shape)};"
                " expected an int, or an integer tensor [batch]"
            )
    elif isinstance(tokens, bool) or not isinstance(tokens, int):
        raise TypeError(f"prompt_length got {tokens!r}; expected an int or a tensor [batch]")
    elif tokens < 0:
        raise ValueError(f"prompt_length is {tokens}; expected 0 or more tokens")
    with declare(Phase(prompt_length=tokens)):
        yield


@contextmanager
def attention_rows(answer: Tensor) -> Iterator[None]:
    """Declare row by row which tokens are answer (training, several turns, packed sequences).

    An answer row is full in the layers with full decode. The dense tail consists of the rows right
    before each span of answer tokens, within their sequence.

    >>> with swaa.attention_rows(labels != -100):  # doctest: +SKIP
    ...     loss = model(ids, labels=labels).loss

    Args:
        answer: bool ``[batch, tokens]``, the shape of the input ids.

    Raises:
        TypeError: for anything but a boolean tensor with two dimensions.
    """
    if not isinstance(answer, Tensor) or answer.dtype != torch.bool or answer.ndim != 2:
        raise TypeError("attention_rows expects a boolean tensor [batch, tokens]")
    with declare(Phase(rows=answer)):
        yield


@contextmanager
def full_attention() -> Iterator[None]:
    """Let an adapted model attend as it did before, for the calls inside the block.

    It serves a teacher that is the same model: nothing is restored or adapted again. Code inside
    torch.compile cannot see the block and refuses to run in it.

    >>> with full_attention(), torch.no_grad():  # doctest: +SKIP
    ...     teacher = model(ids).logits
    """
    _FULL_BLOCKS.append(None)
    try:
        with declare(Phase(full=True)):
            yield
    finally:
        _FULL_BLOCKS.pop()
