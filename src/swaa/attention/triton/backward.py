"""The backward pass, without atomics: two runs give the same bits.

Queries and keys each have their own kernel. A program of ``dq_kernel`` owns a query tile and loops
over its keys. A program of ``dkdv_kernel`` owns a key tile and loops over the rows that see it in
their window or because they are full, for one query head of the group after another. Sinks are
seen by all later rows: ``sinks_kernel`` sums those rows in slices, the slices are added up, and the
key tile starts from that sum. Weights are recomputed from the forward pass's log-sum-exp.

Keys that were chosen for blocks of rows are neither sinks nor in their windows: what goes through
them is added to these gradients afterwards, by ``selected_backward.py``.
"""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from swaa.attention.call import Selection, current_device
from swaa.attention.triton import selected, selected_backward
from swaa.attention.triton.backward_inputs import Inputs
from swaa.attention.triton.backward_kernels import (
    dkdv_kernel,
    dq_kernel,
    lows_kernel,
    sinks_kernel,
)
from swaa.attention.triton.prefill import compile_options, descriptor, forward, reachable_by_tma
from swaa.attention.triton.sequences import LOG2_E, Numbers
from swaa.attention.triton.tiles import Tile, tile_for

SLICE_ROWS = 2048
"""Rows per slice of the sinks' sum; more where there would be more programs than PROGRAMS."""
PROGRAMS = 1024


class Gradients(NamedTuple):
    """Gradients of q, k and v, each contiguous and shaped as its tensor."""

    q: Tensor
    k: Tensor
    v: Tensor


class Tiles(NamedTuple):
    """Tile sizes of the three kernels."""

    dq: Tile
    dkdv: Tile
    sinks: Tile


class DifferentiableAttention(torch.autograd.Function):
    """The prefill's forward pass with its backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        numbers: Numbers,
        scale: float,
        selection: Selection | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Output and lse; keeps what the backward pass needs, the chosen blocks included."""
        output, lse = forward(q, k, v, numbers, scale)
        if selection is not None:
            selected.add_selected(q, k, v, numbers, scale, selection, output, lse)
        ctx.save_for_backward(q, k, v, output, lse, *(selection or ()))
        ctx.numbers = numbers
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        q, k, v, output, lse, *chosen = ctx.saved_tensors
        grad_output, grad_lse = gradients
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        with current_device(q):
            found = backward(
                q,
                k,
                v,
                output,
                lse,
                grad_output,
                grad_lse,
                ctx.numbers,
                ctx.scale,
                selection=Selection(*chosen) if chosen else None,
            )
        return (*found, None, None, None)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    grad_lse: Tensor | None,
    numbers: Numbers,
    scale: float,
    tiles: Tiles | None = None,
    selection: Selection | None = None,
) -> Gradients:
    """Gradients of attention.

    Args:
        q: ``[batch, queries, heads, head_dim]``.
        k: ``[batch, keys, kv_heads, head_dim]``.
        v: as ``k``.
        output: of :func:`~swaa.attention.triton.prefill.forward`, chosen keys added.
        lse: of the same.
        grad_output: gradient of the output.
        grad_lse: gradient of the lse, or None.
        numbers: the mask and the layout.
        scale: factor of the scores.
        tiles: tile sizes; default the table's.
        selection: the blocks that were chosen, if any; not for packed sequences.

    Returns:
        :class:`Gradients`.
    """
    # Gradients to which chosen keys are added are rounded once, at the end.
    dtype = q.dtype if selection is None else torch.float32
    gradients = Gradients(*(torch.empty(x.shape, dtype=dtype, device=x.device) for x in (q, k, v)))
    if q.numel() == 0 or k.numel() == 0 or numbers.sequences == 0:
        return Gradients(*(gradient.zero_().to(q.dtype) for gradient in gradients))
    if grad_output.stride(3) != 1:
        grad_output = grad_output.contiguous()
    head_dim = q.shape[3]
    tiles = tiles or Tiles(*(tile_for(name, q.device, q.dtype, head_dim) for name in Tiles._fields))
    step = Step(q, k, v, grad_output, lse, torch.empty_like(lse), numbers, scale)
    step.launch_dq(output, grad_lse, gradients.q, tiles.dq)
    sums = step.launch_sinks(tiles.sinks) if numbers.sink_tokens else None
    step.launch_dkdv(sums, gradients, tiles.dkdv)
    if selection is None:
        return gradients
    selected_backward.add_to_queries(step, selection, gradients.q)
    selected_backward.add_to_keys(step, selection, gradients.k, gradients.v)
    return Gradients(*(gradient.to(q.dtype) for gradient in gradients))


class Step(Inputs):
    """The launches of one backward; the first writes ``delta``, which the others read."""

    def launch_dq(self, output: Tensor, grad_lse: Tensor | None, dq: Tensor, tile: Tile) -> None:
        """Write ``delta`` and the gradient of q."""
        batch, _, heads, _ = self.q.shape
        tma = tile.tma and reachable_by_tma(self.k) and reachable_by_tma(self.v)
        unclean = self.numbers.packed or isinstance(self.numbers.kv_lens, Tensor)
        k, v = (self._source(x, tile.block_n, tma) for x in (self.k, self.v))
        dq_kernel[(self.numbers.query_slots(tile.block_m) * batch * heads,)](
            self.q,
            k,
            v,
            output,
            self.grad_output,
            dq,
            self.lse,
            None if grad_lse is None else grad_lse.contiguous(),
            self.delta,
            *strides(self.q, self.k, self.v, output, self.grad_output),
            **self._mask(),
            **self._sizes(tile, tma, unclean),
        )

    def launch_sinks(self, tile: Tile) -> Tensor:
        """Sum the sinks' gradients over the rows that see them only as sinks.

        Returns:
            float32 ``[2, sequences, kv_heads, sink slots, padded head_dim]``: dK (without the
            factor of the scores) and dV.
        """
        sequences, kv_heads = self.numbers.sequences, self.k.shape[2]
        blocks = triton.cdiv(min(self.numbers.sink_tokens, self.k.shape[1]), tile.block_n)
        share = blocks * kv_heads * sequences
        rows = triton.cdiv(self.numbers.queries, sequences if self.numbers.packed else 1)
        slices = max(1, min(triton.cdiv(rows, SLICE_ROWS), PROGRAMS // share))
        slots, block_d = blocks * tile.block_n, triton.next_power_of_2(self.q.shape[3])
        shape = (slices, 2, sequences, kv_heads, slots, block_d)
        parts = torch.empty(shape, dtype=torch.float32, device=self.q.device)
        tma = tile.tma and reachable_by_tma(self.q) and reachable_by_tma(self.grad_output)
        sinks_kernel[(slices * share,)](
            self._source(self.q, tile.block_m, tma),
            self.k,
            self.v,
            self._source(self.grad_output, tile.block_m, tma),
            self.lse,
            self.delta,
            parts,
            slices,
            slots,
            *strides(self.q, self.k, self.v, self.grad_output),
            **self._mask(),
            **self._sizes(tile, tma, self.numbers.packed),
        )
        return parts.sum(dim=0)

    def launch_dkdv(self, sums: Tensor | None, gradients: Gradients, tile: Tile) -> None:
        """Write the gradients of k and v."""
        batch, _, kv_heads, _ = self.k.shape
        tma = tile.tma and reachable_by_tma(self.q) and reachable_by_tma(self.grad_output)
        dkdv_kernel[(self.numbers.key_slots(tile.block_n) * batch * kv_heads,)](
            self._source(self.q, tile.block_m, tma),
            self.k,
            self.v,
            self._source(self.grad_output, tile.block_m, tma),
            gradients.k,
            gradients.v,
            self.lse,
            self.delta,
            sums,
            self._lows(tile.block_m),
            0 if sums is None else sums.shape[3],
            *strides(self.q, self.k, self.v, self.grad_output),
            **self._mask(),
            **self._sizes(tile, tma, self.numbers.packed),
        )

    def _lows(self, block_m: int) -> Tensor | None:
        """Smallest declared left per tile of rows, int32, or None without declared lefts."""
        left = self.numbers.p_left
        if left is None:
            return None
        batch = self.q.shape[0]
        slots = self.numbers.query_slots(block_m)
        lows = torch.empty(batch * slots, dtype=torch.int32, device=left.device)
        lows_kernel[(batch * slots,)](
            left,
            lows,
            self.numbers.stride_left,
            self.numbers.p_cu_q,
            self.numbers.sequences,
            batch,
            self.numbers.queries,
            BLOCK_M=block_m,
        )
        return lows

    def _source(self, x: Tensor, block: int, tma: bool) -> object:
        return descriptor(x, block, triton.next_power_of_2(x.shape[3])) if tma else x

    def _mask(self) -> dict[str, Any]:
        return {
            **self.numbers._asdict(),
            "batch": self.q.shape[0],
            "scale": self.scale,
            "scale_log2": self.scale * LOG2_E.value,
        }

    def _sizes(self, tile: Tile, tma: bool, unclean: bool) -> dict[str, Any]:
        heads, head_dim = self.q.shape[2:]
        return {
            "HEADS": heads,
            "GROUP": heads // self.k.shape[2],
            "D": head_dim,
            "BLOCK_D": triton.next_power_of_2(head_dim),
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "TMA": tma,
            "CLEAN": tma and unclean,
            **compile_options(tile),
        }


def strides(*tensors: Tensor) -> list[int]:
    """Strides of batch, token and head of each tensor, one after the other."""
    return [stride for x in tensors for stride in x.stride()[:3]]
