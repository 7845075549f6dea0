"""Plans the tiles of a Hopper prefill and launches its kernel."""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from swaa.attention.triton.sequences import (
    LENGTHS,
    LOG2_E,
    NEVER,
    PLAN,
    ROWS,
    Numbers,
    query_tile,
    tile_mask,
)
from swaa.attention.triton.tiles import Tile

LEAST_STAGES = 2
"""Fewest key blocks that must fit in shared memory at once."""


def serves(q: Tensor, numbers: Numbers) -> bool:
    """Whether the Hopper kernel can run a prefill whose tensors the copy engine can address."""
    if not is_hopper(q.device) or q.dtype == torch.float32:
        return False
    padded = not isinstance(numbers.kv_start, int) or numbers.kv_start > 0
    return not (padded and moves_back(numbers))


def moves_back(numbers: Numbers) -> bool:
    """Whether keys after a sequence's end may be nonzero, so that none may be read."""
    return numbers.packed or isinstance(numbers.kv_lens, Tensor)


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    numbers: Numbers,
    scale: float,
    tile: Tile,
) -> None:
    """Write output and lse of a prefill; all tensors as in ``prefill.forward``.

    Raises:
        ValueError: for a tile of one stage, because the kernel would wait for ever.
    """
    if tile.stages < LEAST_STAGES:
        # A step waits for the next keys before it frees the last ones.
        raise ValueError(f"{tile}: the Hopper kernel needs at least {LEAST_STAGES} stages")
    # Gluon's interpreter does not support warp specialization; import Gluon only with a GPU.
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from swaa.attention.triton.hopper_kernel import hopper_kernel

    batch, _, heads, head_dim = q.shape
    block_d = triton.next_power_of_2(head_dim)
    element = gl.float16 if q.dtype == torch.float16 else gl.bfloat16

    def described(x: Tensor, tokens: int) -> TensorDescriptor:
        block = [1, tokens, 1, block_d]
        layout = gl.NVMMASharedLayout.get_default_for(block, element)
        return TensorDescriptor(x, list(x.shape), list(x.stride()), block, layout)

    plan, lefts = plan_tiles(numbers, batch, tile, q.device)
    planned = plan.shape[0]
    tiles = planned * heads
    programs = min(tiles, multiprocessors(q.device)) if even(numbers) else tiles
    hopper_kernel[(programs,)](
        described(q, ROWS.value),
        described(k, tile.block_n),
        described(v, tile.block_n),
        output,
        lse,
        plan,
        lefts,
        tiles,
        planned,
        numbers.queries,
        scale * LOG2_E.value,
        HEADS=heads,
        GROUP=heads // k.shape[2],
        D=head_dim,
        BLOCK_D=block_d,
        BLOCK_N=tile.block_n,
        STAGES=tile.stages,
        BACK=moves_back(numbers),
        num_warps=4,
    )


def even(numbers: Numbers) -> bool:
    """Whether neighbouring tiles cost about the same, so that they can be assigned in advance."""
    no_full_rows = isinstance(numbers.full_from, int) and numbers.full_from == NEVER.value
    return no_full_rows and numbers.p_left is None and not numbers.packed


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether a device is a GPU of compute capability 9.0."""
    if device.type != "cuda" or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device) == (9, 0)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def plan_tiles(
    numbers: Numbers, batch: int, tile: Tile, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What each query tile reads, the same for all heads.

    Returns:
        int32 ``[planned, PLAN]``: batch entry, first token, rows, position of the first row, token
        of the sequence's key 0, start, first key of the window, number of blocks of sinks, of the
        edge, of the interior, and in total, end of the sinks, end of the keys; and int32
        ``[planned, block_m]``, ``left`` of each row.
    """
    planned = numbers.query_slots(tile.block_m) * batch
    plan = torch.empty(planned, PLAN.value, dtype=torch.int32, device=device)
    lefts = torch.empty(planned, tile.block_m, dtype=torch.int32, device=device)
    plan_kernel[(planned,)](
        plan,
        lefts,
        **numbers._asdict(),
        batch=batch,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=1,
    )
    return plan, lefts


@triton.jit(do_not_specialize=LENGTHS)
def plan_kernel(
    p_plan,
    p_lefts,
    p_cu_q,
    p_cu_k,
    p_left,
    stride_left,
    sequences,
    queries,
    keys,
    q_start,
    kv_start,
    kv_lens,
    full_from,
    full_until,
    window,
    sink_tokens,
    batch,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Plan one query tile."""
    slot = tl.program_id(0)
    b, s, row, q_first, q_count, k_first, k_count, position = query_tile(
        slot, batch, p_cu_q, p_cu_k, sequences, queries, keys, q_start, kv_lens, BLOCK_M
    )
    q_count = tl.maximum(q_count, row)  # a slot after its sequence's last tile has no rows
    token, first, count, _, start, lefts, blocks = tile_mask(
        p_left, stride_left, b, s, row, q_first, q_count, position, sequences, k_count,
        kv_start, full_from, full_until, window, sink_tokens, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    low, sinks, before, inner, after, sink_end, end = blocks
    blocks = tl.where(count > 0, sinks + before + inner + after, 0)
    p_plan += slot * PLAN
    tl.store(p_plan, b)
    tl.store(p_plan + 1, token)
    tl.store(p_plan + 2, count)
    tl.store(p_plan + 3, first)
    tl.store(p_plan + 4, k_first)
    tl.store(p_plan + 5, start)
    tl.store(p_plan + 6, low)
    tl.store(p_plan + 7, tl.where(blocks > 0, sinks, 0))
    tl.store(p_plan + 8, tl.where(blocks > 0, before, 0))
    tl.store(p_plan + 9, tl.where(blocks > 0, inner, 0))
    tl.store(p_plan + 10, tl.maximum(blocks, 1))  # rows that see nothing: one block, all masked
    tl.store(p_plan + 11, sink_end)
    tl.store(p_plan + 12, tl.where(blocks > 0, end, 0))
    tl.store(p_lefts + slot * BLOCK_M + tl.arange(0, BLOCK_M), lefts)
