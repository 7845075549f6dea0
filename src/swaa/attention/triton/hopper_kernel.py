"""The prefill forward for Hopper, in Gluon: warps that copy and warps that compute.

One warp loads tiles of q, k and v by the copy engine; each group of four warps owns 64 rows. While
a group computes the softmax of one block, the tensor cores multiply its weights of the previous
block with their values, and work for the other group. A program computes many tiles in turn, so
that copies for the next tile start early. A small kernel plans what each tile reads: of the mask,
this kernel knows only block lists and each row's ``left``.
"""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
# pyright: reportAssignmentType=false

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from swaa.attention.triton.sequences import LN_2, PLAN, ROWS

GROUPS = gl.constexpr(2)
"""Groups of computing warps; a third was not faster at head_dim 64, where it fits."""


@gluon.jit
def block_at(
    block, first_row, start, low, sinks, before, inner, sink_end, end, BLOCK_N: gl.constexpr,
    BACK: gl.constexpr,
) -> tuple:  # fmt: skip
    """First key read for a block, the range of its keys that count, whether all rows see all of it.

    ``first_row`` is the position of the first row. With ``BACK``, a block that would go beyond the
    last key is moved back to end with it.
    """
    in_sinks = block < sinks
    first = gl.where(in_sinks, start + block * BLOCK_N, low + (block - sinks) * BLOCK_N)
    limit = gl.where(in_sinks, gl.minimum(sink_end, end), end)
    whole = (block >= sinks + before) & (block < sinks + before + inner)
    whole = whole | (in_sinks & (first + BLOCK_N <= limit) & (limit <= first_row))
    key = first
    if BACK:
        key = gl.where(in_sinks, first, gl.minimum(first, end - BLOCK_N))
    return key, first, limit, whole


@gluon.jit
def copy_tiles(
    q, k, v, p_plan, buffers, barriers, tiles, planned,
    HEADS: gl.constexpr, GROUP: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    BACK: gl.constexpr,
) -> None:  # fmt: skip
    """The copying warp: loads a tile's rows once, and its key and value blocks as stages free."""
    q_tiles, k_tiles, v_tiles = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    step = 0
    done = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        head = tile % HEADS
        p_tile = p_plan + (planned - 1 - tile // HEADS) * PLAN
        b = gl.load(p_tile)
        token = gl.load(p_tile + 1)
        k_first = gl.load(p_tile + 4)
        start = gl.load(p_tile + 5)
        low = gl.load(p_tile + 6)
        sinks = gl.load(p_tile + 7)
        before = gl.load(p_tile + 8)
        inner = gl.load(p_tile + 9)
        blocks = gl.load(p_tile + 10)
        end = gl.load(p_tile + 12)
        kv_head = head // GROUP
        mbarrier.wait(q_empty, (done & 1) ^ 1)
        mbarrier.expect(q_full, GROUPS * q.block_type.nbytes)
        for group in gl.static_range(GROUPS):
            tma.async_copy_global_to_shared(
                q, [b, token + group * ROWS, head, 0], q_full, q_tiles.index(group)
            )
        for block in range(0, blocks):
            key, _, _, _ = block_at(
                block, 0, start, low, sinks, before, inner, end, end, BLOCK_N, BACK
            )
            stage = step % STAGES
            phase = (step // STAGES & 1) ^ 1
            mbarrier.wait(k_empty.index(stage), phase)
            mbarrier.expect(k_full.index(stage), k.block_type.nbytes)
            tma.async_copy_global_to_shared(
                k, [b, k_first + key, kv_head, 0], k_full.index(stage), k_tiles.index(stage)
            )
            mbarrier.wait(v_empty.index(stage), phase)
            mbarrier.expect(v_full.index(stage), v.block_type.nbytes)
            tma.async_copy_global_to_shared(
                v, [b, k_first + key, kv_head, 0], v_full.index(stage), v_tiles.index(stage)
            )
            step += 1
        done += 1  # noqa: SIM113 - Gluon has no enumerate


@gluon.jit
def largest(x, S_LAYOUT: gl.constexpr) -> gl.tensor:
    """Row maxima, in two chains: in one chain each step would wait for the step before."""
    even, odd = x.reshape([x.shape[0], x.shape[1] // 2, 2]).split()
    found = gl.max(gl.maximum(even, odd), 1)
    return gl.convert_layout(found, gl.SliceLayout(1, S_LAYOUT), assert_trivial=True)


@gluon.jit
def total_of(x, S_LAYOUT: gl.constexpr) -> gl.tensor:
    """Row sums, in two chains."""
    even, odd = x.reshape([x.shape[0], x.shape[1] // 2, 2]).split()
    found = gl.sum(even + odd, 1)
    return gl.convert_layout(found, gl.SliceLayout(1, S_LAYOUT), assert_trivial=True)


@gluon.jit
def soften(
    scores, top, positions, lefts, key, from_key, limit, sink_end, whole, scale_log2,
    BLOCK_N: gl.constexpr, S_LAYOUT: gl.constexpr, BACK: gl.constexpr,
) -> tuple:  # fmt: skip
    """Weights of a block of scores, the new row maxima, and the factor for older sums."""
    if not whole:
        j = key + gl.arange(0, BLOCK_N, gl.SliceLayout(0, S_LAYOUT))[None, :]
        seen = (j >= lefts[:, None]) | (j < sink_end)
        seen = seen & (j <= gl.minimum(positions, limit - 1)[:, None])
        if BACK:
            seen = seen & (j >= from_key)
        scores = gl.where(seen, scores, float("-inf"))
    new = gl.maximum(top, largest(scores, S_LAYOUT) * scale_log2)
    base = gl.where(new == float("-inf"), 0.0, new)  # rows that have seen nothing yet
    weights = gl.exp2(scores * scale_log2 - base[:, None])
    return weights, new, gl.exp2(top - base)


@gluon.jit
def attend_rows(
    group, p_o, p_lse, p_plan, p_lefts, buffers, barriers, tiles, planned, queries, scale_log2,
    HEADS: gl.constexpr, D: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, BACK: gl.constexpr,
) -> None:  # fmt: skip
    """Four computing warps: 64 rows of each tile."""
    q_tiles, k_tiles, v_tiles = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])
    W_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    STORE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BLOCK_D, BLOCK_D // 8], [4, 1], [1, 0])
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, S_LAYOUT))
    step = 0
    done = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        head = tile % HEADS
        slot = planned - 1 - tile // HEADS
        p_tile = p_plan + slot * PLAN
        b = gl.load(p_tile)
        token = gl.load(p_tile + 1) + group * ROWS
        count = gl.load(p_tile + 2) - group * ROWS
        first = gl.load(p_tile + 3) + group * ROWS
        start = gl.load(p_tile + 5)
        low = gl.load(p_tile + 6)
        sinks = gl.load(p_tile + 7)
        before = gl.load(p_tile + 8)
        inner = gl.load(p_tile + 9)
        blocks = gl.load(p_tile + 10)
        sink_end = gl.load(p_tile + 11)
        end = gl.load(p_tile + 12)
        lefts = gl.load(p_lefts + (slot * GROUPS + group) * ROWS + rows)
        positions = first + rows

        acc = gl.zeros([ROWS, BLOCK_D], gl.float32, O_LAYOUT)
        top = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S_LAYOUT))
        none = gl.zeros([ROWS, BLOCK_N], gl.float32, S_LAYOUT)
        mbarrier.wait(q_full, done & 1)
        q = q_tiles.index(group).reshape([ROWS, BLOCK_D])

        key, from_key, limit, whole = block_at(
            0, first, start, low, sinks, before, inner, sink_end, end, BLOCK_N, BACK
        )
        stage = step % STAGES
        phase = step // STAGES & 1
        mbarrier.wait(k_full.index(stage), phase)
        b_k = k_tiles.index(stage).reshape([BLOCK_N, BLOCK_D])
        scores = warpgroup_mma(q, b_k.permute([1, 0]), none, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(0, deps=[scores])
        mbarrier.arrive(k_empty.index(stage))
        weights, top, shrink = soften(
            scores, top, positions, lefts, key, from_key, limit, sink_end, whole, scale_log2,
            BLOCK_N, S_LAYOUT, BACK,
        )  # fmt: skip
        total = total_of(weights, S_LAYOUT)
        b_w = gl.convert_layout(weights.to(k_tiles.dtype), W_LAYOUT)
        next_step = step + 1
        mbarrier.wait(k_full.index(next_step % STAGES), next_step // STAGES & 1, pred=blocks > 1)
        for block in range(1, blocks):
            v_stage = stage
            v_phase = phase
            step += 1
            stage = step % STAGES
            phase = step // STAGES & 1
            key, from_key, limit, whole = block_at(
                block, first, start, low, sinks, before, inner, sink_end, end, BLOCK_N, BACK
            )
            b_k = k_tiles.index(stage).reshape([BLOCK_N, BLOCK_D])
            scores = warpgroup_mma(q, b_k.permute([1, 0]), none, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(v_stage), v_phase)
            b_v = v_tiles.index(v_stage).reshape([BLOCK_N, BLOCK_D])
            acc = warpgroup_mma(b_w, b_v, acc, is_async=True)
            scores = warpgroup_mma_wait(1, deps=[scores])
            weights, top, shrink = soften(
                scores, top, positions, lefts, key, from_key, limit, sink_end, whole, scale_log2,
                BLOCK_N, S_LAYOUT, BACK,
            )  # fmt: skip
            total = total * shrink + total_of(weights, S_LAYOUT)
            # Nothing needs the next keys yet, but waiting for them here keeps the assembler from
            # moving the wait for the product up, where it would not overlap with the softmax.
            next_step = step + 1
            mbarrier.wait(
                k_full.index(next_step % STAGES),
                next_step // STAGES & 1,
                pred=block + 1 < blocks,
            )
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(k_empty.index(stage))
            mbarrier.arrive(v_empty.index(v_stage))
            acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, O_LAYOUT))[:, None]
            b_w = gl.convert_layout(weights.to(k_tiles.dtype), W_LAYOUT)
        mbarrier.arrive(q_empty)
        mbarrier.wait(v_full.index(stage), phase)
        b_v = v_tiles.index(stage).reshape([BLOCK_N, BLOCK_D])
        acc = warpgroup_mma(b_w, b_v, acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_empty.index(stage))
        step += 1
        done += 1  # noqa: SIM113 - Gluon has no enumerate

        empty = total == 0.0
        total = gl.where(empty, 1.0, total)
        lse = gl.where(empty, float("-inf"), (top + gl.log2(total)) * LN_2)
        o_first = b.to(gl.int64) * queries + token
        p_lse_rows = p_lse + (b.to(gl.int64) * HEADS + head) * queries + token
        gl.store(p_lse_rows + rows, lse, mask=rows < count)
        acc = acc / gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))[:, None]
        b_o = gl.convert_layout(acc.to(p_o.dtype.element_ty), STORE)
        o_rows = gl.arange(0, ROWS, gl.SliceLayout(1, STORE))[:, None]
        columns = gl.arange(0, BLOCK_D, gl.SliceLayout(0, STORE))[None, :]
        p_tile_o = p_o + (o_first * HEADS + head) * D
        m_o = (o_rows < count) & (columns < D)
        gl.store(p_tile_o + o_rows * (HEADS * D) + columns, b_o, mask=m_o)


@gluon.jit(do_not_specialize=["tiles", "planned", "queries"])
def hopper_kernel(
    q, k, v, p_o, p_lse, p_plan, p_lefts, tiles, planned, queries, scale_log2,
    HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, BLOCK_D: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, BACK: gl.constexpr,
) -> None:  # fmt: skip
    """Compute tiles ``program, program + programs, ..``; the heads of a query tile are adjacent."""
    q_tiles = gl.allocate_shared_memory(q.dtype, [GROUPS, 1, ROWS, 1, BLOCK_D], q.layout)
    k_tiles = gl.allocate_shared_memory(k.dtype, [STAGES, 1, BLOCK_N, 1, BLOCK_D], k.layout)
    v_tiles = gl.allocate_shared_memory(v.dtype, [STAGES, 1, BLOCK_N, 1, BLOCK_D], v.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=GROUPS)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=GROUPS)
        mbarrier.init(v_empty.index(stage), count=GROUPS)

    buffers = (q_tiles, k_tiles, v_tiles)
    barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty)
    gl.warp_specialize(
        [
            (
                attend_rows,
                (
                    0, p_o, p_lse, p_plan, p_lefts, buffers, barriers, tiles, planned, queries,
                    scale_log2, HEADS, D, BLOCK_D, BLOCK_N, STAGES, BACK,
                ),
            ),
            (
                attend_rows,
                (
                    1, p_o, p_lse, p_plan, p_lefts, buffers, barriers, tiles, planned, queries,
                    scale_log2, HEADS, D, BLOCK_D, BLOCK_N, STAGES, BACK,
                ),
            ),
            (
                copy_tiles,
                (
                    q, k, v, p_plan, buffers, barriers, tiles, planned,
                    HEADS, GROUP, BLOCK_N, STAGES, BACK,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
