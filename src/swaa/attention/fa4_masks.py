"""The mask's rule in the language of FlashAttention-4, for blocks that are seen in part.

Import this file only with FlashAttention-4. What differs between models is compiled in (window,
sinks). What differs between prompts (positions, full rows) is read from tensors, so a new length
does not compile again. ``j <= i`` and the rest are Python operators on one-element vectors.
"""

# pyright: reportOperatorIssue=false, reportMissingImports=false

from __future__ import annotations

import functools
from collections.abc import Callable

import cutlass
import cutlass.cute as cute
from flash_attn.cute import utils

Mask = Callable[..., object]


@functools.cache
def sliding(window: int, sink_tokens: int) -> Mask:
    """Every row slides, and the first row is at position 0."""

    @cute.jit
    def mask(batch, head, i, j, lengths, tensors):  # noqa: ANN001, ANN202
        width = utils.scalar_to_ssa(window, cutlass.Int32)
        sinks = utils.scalar_to_ssa(sink_tokens, cutlass.Int32)
        return (j <= i) & ((i - j < width) | (j < sinks))

    return mask


@functools.cache
def with_full_rows(window: int, sink_tokens: int) -> Mask:
    """Rows start anywhere and are full in a range: ``tensors`` is [[q_start, from, until]]."""

    @cute.jit
    def mask(batch, head, i, j, lengths, tensors):  # noqa: ANN001, ANN202
        width = utils.scalar_to_ssa(window, cutlass.Int32)
        sinks = utils.scalar_to_ssa(sink_tokens, cutlass.Int32)
        numbers = tensors[0]
        position = i + utils.scalar_to_ssa(numbers[0], cutlass.Int32)
        full_from = utils.scalar_to_ssa(numbers[1], cutlass.Int32)
        full_until = utils.scalar_to_ssa(numbers[2], cutlass.Int32)
        full = (position >= full_from) & (position < full_until)
        return (j <= position) & (full | (position - j < width) | (j < sinks))

    return mask


@functools.cache
def by_row(sink_tokens: int) -> Mask:
    """Each row has its own numbers: ``tensors`` are position, left, start, ``[batch, rows]``."""

    @cute.jit
    def mask(batch, head, i, j, lengths, tensors):  # noqa: ANN001, ANN202
        sinks = utils.scalar_to_ssa(sink_tokens, cutlass.Int32)
        position = utils.scalar_to_ssa(tensors[0][batch[0], i[0]], cutlass.Int32)
        left = utils.scalar_to_ssa(tensors[1][batch[0], i[0]], cutlass.Int32)
        start = utils.scalar_to_ssa(tensors[2][batch[0], i[0]], cutlass.Int32)
        return (j >= start) & (j <= position) & ((j >= left) | (j < start + sinks))

    return mask
