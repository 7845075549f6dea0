"""Copy keys and values out of pages, for the kernels that need them contiguous."""

# Kernels are typed for Triton's compiler, not for pyright.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = tl.constexpr(16)
"""Tokens copied by one program."""


def gather(kv_cache: Tensor, slots: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Rows ``[keys, kv_heads, keys | values]`` of a layer's cache.

    Args:
        kv_cache: ``[blocks, kv_heads, block_size, keys | values]``, the last stride 1.
        slots: int64 ``[keys]``: block number times block size plus offset.
        dtype: of the rows; None: that of the cache.
    """
    _, heads, page, width = kv_cache.shape
    keys = slots.shape[0]
    rows = torch.empty(keys, heads, width, dtype=dtype or kv_cache.dtype, device=kv_cache.device)
    _gather[(triton.cdiv(keys, TOKENS.value), heads)](
        kv_cache,
        rows,
        slots,
        *kv_cache.stride()[:3],
        keys,
        HEADS=heads,
        PAGE=page,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
    )
    return rows


@triton.jit(do_not_specialize=["keys"])
def _gather(
    p_cache,
    p_rows,
    p_slots,
    stride_block,
    stride_head,
    stride_slot,
    keys,
    HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    key = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    slot = tl.load(p_slots + key, mask=key < keys, other=0)  # int64
    m_x = (key < keys)[:, None] & (column < WIDTH)[None, :]
    o_x = slot // PAGE * stride_block + head * stride_head + slot % PAGE * stride_slot
    b_x = tl.load(p_cache + o_x[:, None] + column[None, :], mask=m_x)  # [TOKENS, BLOCK]
    o_row = (key.to(tl.int64) * HEADS + head) * WIDTH
    tl.store(p_rows + o_row[:, None] + column[None, :], b_x, mask=m_x)
