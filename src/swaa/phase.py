"""Where the prompt ends: declared by whoever knows it, never guessed from shapes.

One query row is not "decoding": chunked prefill may end in a chunk of one token, and speculative
decoding verifies several. So the phase is passed. ``generate`` of an adapted model declares it by
itself; direct ``model(...)`` calls use :func:`prompt_length` or :func:`attention_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor


class Phase(NamedTuple):
    """What is known about the rows of the forward passes to come.

    Attributes:
        prompt_length: slots before it are prompt, padding included; per sequence if a tensor.
        rows: bool ``[batch, tokens]``, True where a row is an answer token; overrides
            ``prompt_length``.
        generating: whether a ``generate`` of ours runs, which never packs sequences.
        full: every row of every adapted layer sees everything, whatever the configuration.
    """

    prompt_length: int | Tensor | None = None
    rows: Tensor | None = None
    generating: bool = False
    full: bool = False


_PHASE: ContextVar[Phase | None] = ContextVar("swaa_phase", default=None)


def current_phase() -> Phase:
    """The phase declared around this call; an empty one when nothing was declared.

    Code inside torch.compile cannot read a declaration (a compiled graph would keep the first one
    for ever), so there the phase is always empty.
    """
    if torch.compiler.is_compiling():
        return Phase()
    return _PHASE.get() or Phase()


@contextmanager
def declare(phase: Phase) -> Iterator[None]:
    """Declare a phase for the forward passes inside the block."""
    token = _PHASE.set(phase)
    try:
        yield
    finally:
        _PHASE.reset(token)


@contextmanager
def prompt_length(tokens: int | Tensor) -> Iterator[None]:
    """Declare where the prompt ends, for direct ``model(...)`` calls.

    Rows before ``tokens`` slide, but for the dense tail; later rows follow ``full_decode``.

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

    An answer row is full in the layers with full decode; the dense tail are the rows right before
    each span of answer tokens, within their sequence.

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
    """Let an adapted model attend as it did before, for the direct calls inside the block.

    For a teacher that is the same model: nothing is restored or adapted again.

    >>> with full_attention(), torch.no_grad():  # doctest: +SKIP
    ...     teacher = model(ids).logits
    """
    with declare(Phase(full=True)):
        yield
