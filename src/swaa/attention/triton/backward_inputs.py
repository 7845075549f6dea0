"""What every launch of a backward pass reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from swaa.attention.triton.sequences import Numbers


@dataclass(frozen=True)
class Inputs:
    """What the kernels of one backward share.

    Attributes:
        q: ``[batch, queries, heads, head_dim]``.
        k: ``[batch, keys, kv_heads, head_dim]``.
        v: as ``k``.
        grad_output: gradient of the output.
        lse: float32 ``[batch, heads, queries]``.
        delta: float32, shaped as ``lse``: each row's dot product of output and gradient; written by
            the first launch, read by the others.
        numbers: the mask and the layout.
        scale: factor of the scores.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grad_output: Tensor
    lse: Tensor
    delta: Tensor
    numbers: Numbers
    scale: float
