"""The prefill's forward pass: a program per query tile and head, sinks and window in one pass.

A tile's keys fall into three kinds of blocks: sinks (where they are separate from the window),
edges (some rows see a key and others do not) and the interior, which every row sees wholly and
which needs no mask. Keys between the sinks and the window are never loaded.
"""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from swaa.attention.call import AttentionCall
from swaa.attention.triton import hopper
from swaa.attention.triton.sequences import (
    LENGTHS,
    LN_2,
    LOG2_E,
    Numbers,
    load_tile,
    masked_block,
    query_tile,
    soften,
    tile_mask,
    visible,
)
from swaa.attention.triton.tiles import Tile, tile_for


def refusal(call: AttentionCall) -> str | None:
    """Why this kernel cannot serve the call, or None."""
    if call.paged:
        return "its prefill reads no pages"
    if needs_gradient(call) and call.q.dtype == torch.float32:
        # Weights recomputed from a float32 lse are off by a few ulp of float32.
        return "its gradients are exact to 16 bits, not to float32"
    return None


def needs_gradient(call: AttentionCall) -> bool:
    """Whether the gradient of this call may be needed."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in (call.q, call.k, call.v))


def forward(
    q: Tensor, k: Tensor, v: Tensor, numbers: Numbers, scale: float, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the rows of ``q``.

    Args:
        q: ``[batch, queries, heads, head_dim]``.
        k: ``[batch, keys, kv_heads, head_dim]``.
        v: as ``k``.
        numbers: the mask and the layout.
        scale: factor of the scores.
        tile: tile sizes; default the table's.

    Returns:
        The output, contiguous, shaped as ``q``, and the lse, float32 ``[batch, heads, queries]``.
    """
    batch, queries, heads, head_dim = q.shape
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    if q.numel() == 0:
        return output, lse
    if k.numel() == 0 or numbers.sequences == 0:
        return output.zero_(), lse.fill_(float("-inf"))
    reachable = all(reachable_by_tma(x) for x in (q, k, v))
    if tile is None and reachable and hopper.serves(q, numbers):
        tile = tile_for("hopper", q.device, q.dtype, head_dim)
        hopper.launch(q, k, v, output, lse, numbers, scale, tile)
        return output, lse
    tile = tile or tile_for("prefill", q.device, q.dtype, head_dim)
    block_d = triton.next_power_of_2(head_dim)
    tma = tile.tma and reachable
    slots = numbers.query_slots(tile.block_m)
    prefill_kernel[(slots * batch * heads,)](
        q,
        descriptor(k, tile.block_n, block_d) if tma else k,
        descriptor(v, tile.block_n, block_d) if tma else v,
        output,
        lse,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *output.stride()[:3],
        numbers.p_cu_q,
        numbers.p_cu_k,
        numbers.p_left,
        numbers.stride_left,
        numbers.sequences,
        batch,
        numbers.queries,
        numbers.keys,
        numbers.q_start,
        numbers.kv_start,
        numbers.kv_lens,
        numbers.full_from,
        numbers.full_until,
        numbers.window,
        numbers.sink_tokens,
        scale * LOG2_E.value,
        HEADS=heads,
        GROUP=heads // k.shape[2],
        D=head_dim,
        BLOCK_D=block_d,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        TMA=tma,
        CLEAN=tma and (numbers.packed or isinstance(numbers.kv_lens, Tensor)),
        **compile_options(tile),
    )
    return output, lse


def compile_options(tile: Tile) -> dict[str, int]:
    """The tile's warps, stages and registers as launch options."""
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return options | {"maxnreg": tile.registers} if tile.registers else options


def reachable_by_tma(x: Tensor) -> bool:
    """Whether the copy engine can address a tensor: its start and strides are 16-byte aligned."""
    step = 16 // x.element_size()
    return x.data_ptr() % 16 == 0 and all(
        stride > 0 and stride % step == 0 for stride in x.stride()[:3]
    )


def descriptor(x: Tensor, block: int, block_d: int) -> object:
    """A copy-engine descriptor of blocks of ``block`` tokens of one head."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, block, 1, block_d])


@triton.jit(do_not_specialize=LENGTHS)
def prefill_kernel(
    p_q,
    k,
    v,
    p_o,
    p_lse,
    stride_qb,
    stride_qt,
    stride_qh,
    stride_kb,
    stride_kt,
    stride_kh,
    stride_vb,
    stride_vt,
    stride_vh,
    stride_ob,
    stride_ot,
    stride_oh,
    p_cu_q,
    p_cu_k,
    p_left,
    stride_left,
    sequences,
    batch,
    queries,
    keys,
    q_start,
    kv_start,
    kv_lens,
    full_from,
    full_until,
    window,
    sink_tokens,
    scale_log2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    CLEAN: tl.constexpr,
) -> None:
    """One query tile of one head; late tiles first, because their rows may see the most keys."""
    pid = tl.program_id(0)
    head = pid % HEADS
    slot = tl.num_programs(0) // HEADS - 1 - pid // HEADS
    b, s, row, q_first, q_count, k_first, k_count, position = query_tile(
        slot, batch, p_cu_q, p_cu_k, sequences, queries, keys, q_start, kv_lens, BLOCK_M
    )
    if row >= q_count:
        return
    token, first, count, m_rows, start, lefts, blocks = tile_mask(
        p_left, stride_left, b, s, row, q_first, q_count, position, sequences, k_count,
        kv_start, full_from, full_until, window, sink_tokens, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    low, sinks, before, inner, after, sink_end, end = blocks
    rows = tl.arange(0, BLOCK_M)
    positions = first + rows

    b_q = load_tile(
        p_q,
        b,
        token,
        count,
        head,
        stride_qb,
        stride_qt,
        stride_qh,
        BLOCK_M,
        D,
        BLOCK_D,
        False,
        False,
    )
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    kv_head = head // GROUP
    for block in tl.range(0, inner):
        key = low + (before + block) * BLOCK_N
        b_k = load_tile(
            k,
            b,
            k_first + key,
            k_count - key,
            kv_head,
            stride_kb,
            stride_kt,
            stride_kh,
            BLOCK_N,
            D,
            BLOCK_D,
            TMA,
            True,
        )
        scores = tl.dot(b_q, b_k.T, input_precision="ieee")
        weights, top, total, shrink = soften(scores, top, total, scale_log2, False)
        acc = acc * shrink[:, None]
        b_v = load_tile(
            v,
            b,
            k_first + key,
            k_count - key,
            kv_head,
            stride_vb,
            stride_vt,
            stride_vh,
            BLOCK_N,
            D,
            BLOCK_D,
            TMA,
            True,
        )
        acc = tl.dot(weights.to(b_v.dtype), b_v, acc, input_precision="ieee")

    for block in tl.range(0, sinks + before + after):
        key, limit = masked_block(block, low, start, sinks, before, inner, sink_end, end, BLOCK_N)
        j = key + tl.arange(0, BLOCK_N)
        b_k = load_tile(
            k,
            b,
            k_first + key,
            k_count - key,
            kv_head,
            stride_kb,
            stride_kt,
            stride_kh,
            BLOCK_N,
            D,
            BLOCK_D,
            TMA,
            False,
        )
        scores = tl.dot(b_q, b_k.T, input_precision="ieee")
        m_seen = visible(positions[:, None], j[None, :], lefts[:, None], sink_end, limit)
        scores = tl.where(m_seen, scores, float("-inf"))
        weights, top, total, shrink = soften(scores, top, total, scale_log2, True)
        acc = acc * shrink[:, None]
        b_v = load_tile(
            v,
            b,
            k_first + key,
            k_count - key,
            kv_head,
            stride_vb,
            stride_vt,
            stride_vh,
            BLOCK_N,
            D,
            BLOCK_D,
            TMA,
            False,
        )
        if CLEAN:  # a key that does not exist has weight 0, but 0 * NaN is NaN
            b_v = tl.where(j[:, None] < k_count, b_v, 0.0)
        acc = tl.dot(weights.to(b_v.dtype), b_v, acc, input_precision="ieee")

    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    lse = tl.where(empty, float("-inf"), (top + tl.log2(tl.where(empty, 1.0, total))) * LN_2)
    p_lse_rows = p_lse + (b.to(tl.int64) * HEADS + head) * queries + token
    tl.store(p_lse_rows + rows, lse, mask=m_rows)
    columns = tl.arange(0, BLOCK_D)
    p_o_tile = p_o + b.to(tl.int64) * stride_ob + token.to(tl.int64) * stride_ot + head * stride_oh
    tl.store(
        p_o_tile + rows[:, None] * stride_ot + columns[None, :],
        acc.to(p_o.dtype.element_ty),
        mask=m_rows[:, None] & (columns[None, :] < D),
    )
