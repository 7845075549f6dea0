"""Gradients through chosen key blocks, added to those through sinks and window.

As in ``backward.py``, queries and keys each have their own kernel, and no atomics are needed. A
program of ``selected_dq_kernel`` owns a tile of a block of rows and loops over the keys that were
chosen for it. A program of ``selected_dkdv_kernel`` owns a tile of a block of keys and loops over
the blocks of rows that chose it, for all query heads of the group. The lists of these blocks
(:func:`choosers`) are made on the device, as long as the lists that were chosen.
"""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from swaa.attention.call import Selection
from swaa.attention.selection import KEY_BLOCK, ROW_BLOCK
from swaa.attention.triton.backward_inputs import Inputs
from swaa.attention.triton.prefill import compile_options
from swaa.attention.triton.selected_backward_kernels import (
    selected_dkdv_kernel,
    selected_dq_kernel,
)
from swaa.attention.triton.sequences import LOG2_E
from swaa.attention.triton.tiles import Tile, tile_for


class Choosers(NamedTuple):
    """Which blocks of rows chose each block of keys.

    Attributes:
        rows: int32 ``[batch * kv_heads * row_blocks * most]``, numbers of blocks of rows, sorted by
            sequence, key head and block of keys; entries behind the last block's are undefined.
        ends: int32 ``[batch * kv_heads * key_blocks + 1]``: those that chose block ``n`` lie at
            ``[ends[n], ends[n + 1])``.
    """

    rows: Tensor
    ends: Tensor


def choosers(selection: Selection, key_blocks: int) -> Choosers:
    """Turn lists of key blocks into lists of row blocks, without waiting for the device."""
    batch, kv_heads, row_blocks, most = selection.blocks.shape
    device = selection.blocks.device
    lists = batch * kv_heads
    first = torch.arange(0, lists * key_blocks, key_blocks, device=device)
    blocks = selection.blocks.long()
    listed = torch.arange(most, device=device) < selection.counts[..., None]
    listed &= blocks < key_blocks
    chosen = torch.where(
        listed, first.view(batch, kv_heads, 1, 1) + blocks, lists * key_blocks
    ).flatten()
    chosen, order = chosen.sort(stable=True)
    ends = torch.searchsorted(chosen, torch.arange(lists * key_blocks + 1, device=device))
    rows = order.div(max(most, 1), rounding_mode="floor") % row_blocks
    return Choosers(rows.int(), ends.int())


def add_to_queries(inputs: Inputs, selection: Selection, dq: Tensor) -> None:
    """Add what the chosen keys contribute to the gradient of q.

    Args:
        inputs: of the backward pass; its ``delta`` is written.
        selection: the blocks of each block of rows.
        dq: float32, contiguous, shaped as q.
    """
    batch, _, heads, head_dim = inputs.q.shape
    row_blocks, most = selection.blocks.shape[2:]
    tile = tile_for("selected_dq", dq.device, inputs.q.dtype, head_dim)
    programs = row_blocks * (ROW_BLOCK // tile.block_m) * heads * batch
    selected_dq_kernel[(programs,)](
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.grad_output,
        dq,
        inputs.lse,
        inputs.delta,
        selection.blocks.contiguous(),
        selection.counts.contiguous(),
        most,
        **_shared(inputs, row_blocks, tile),
    )


def add_to_keys(inputs: Inputs, selection: Selection, dk: Tensor, dv: Tensor) -> None:
    """Add what blocks of rows contribute to the gradients of the keys and values they chose.

    Args:
        inputs: of the backward pass; its ``delta`` is written.
        selection: the blocks of each block of rows.
        dk: float32, contiguous, shaped as k.
        dv: float32, contiguous, shaped as v.
    """
    batch, keys, kv_heads, head_dim = inputs.k.shape
    key_blocks = triton.cdiv(keys, KEY_BLOCK)
    rows, ends = choosers(selection, key_blocks)
    tile = tile_for("selected_dkdv", dk.device, inputs.q.dtype, head_dim)
    programs = key_blocks * (KEY_BLOCK // tile.block_n) * kv_heads * batch
    selected_dkdv_kernel[(programs,)](
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.grad_output,
        dk,
        dv,
        inputs.lse,
        inputs.delta,
        rows,
        ends,
        key_blocks,
        **_shared(inputs, selection.blocks.shape[2], tile),
    )


def _shared(inputs: Inputs, row_blocks: int, tile: Tile) -> dict[str, Any]:
    """Arguments that both kernels take."""
    batch, _, heads, head_dim = inputs.q.shape
    mask = inputs.numbers._asdict()
    for name in ("p_cu_q", "p_cu_k", "sequences"):
        del mask[name]
    tensors = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "g": inputs.grad_output}
    strides = {
        f"stride_{name}{axis}": x.stride(n)
        for name, x in tensors.items()
        for n, axis in enumerate("bth")
    }
    return {
        **strides,
        **mask,
        "batch": batch,
        "row_blocks": row_blocks,
        "scale": inputs.scale,
        "scale_log2": inputs.scale * LOG2_E.value,
        "HEADS": heads,
        "GROUP": heads // inputs.k.shape[2],
        "D": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "ROWS": ROW_BLOCK,
        "BLOCK": KEY_BLOCK,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        **compile_options(tile),
    }
