"""The eager oracle against which every backend is judged: the whole mask, ordinary softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from swaa.attention.call import AttentionCall, AttentionOutput, attend_apart
from swaa.attention.mask import column, visible
from swaa.attention.pages import choose, decoding, with_pages
from swaa.attention.selection import chosen_keys, select


def refusal(call: AttentionCall) -> str | None:
    """Why this backend cannot serve the call; it serves every call."""
    return None


def attend(call: AttentionCall) -> AttentionOutput:
    """Attention with an explicit mask in the dtype of the inputs, O(queries x keys) memory.

    With float64 inputs it is the oracle. In any other dtype it is what eager PyTorch computes
    (softmax in float32); the other backends' errors are measured against its error.
    """
    if call.packed:
        return attend_apart(call, attend)
    if call.paged:
        call = call.gathered()
    if call.q.shape[1] == 0 or call.k.shape[1] == 0:
        batch, queries, heads, _ = call.q.shape
        lse = call.q.new_full((batch, heads, queries), float("-inf"), dtype=torch.float32)
        return AttentionOutput(call.q.new_zeros((batch, queries, heads, call.v.shape[3])), lse)
    mask = call_mask(call)
    if mask.ndim == 3:  # the same for all heads
        mask = mask[:, None]
    used = mask.any(dim=(1, 2))[:, :, None, None]  # unused slots may hold anything, NaN included
    k, v = (torch.where(used, x, torch.zeros_like(x)) for x in (call.k, call.v))
    groups = call.q.shape[2] // k.shape[2]
    mask = mask.repeat_interleave(call.q.shape[2] // mask.shape[1], dim=1)
    k, v = (x.repeat_interleave(groups, dim=2).transpose(1, 2) for x in (k, v))
    scores = call.q.transpose(1, 2) @ k.transpose(2, 3) * call.scale  # [B, H, Q, K]
    scores = (scores if scores.dtype == torch.float64 else scores.float()).masked_fill(
        ~mask, float("-inf")
    )
    seen = mask.any(dim=3, keepdim=True)  # padding rows see nothing: keep softmax finite there
    weights = (scores.masked_fill(~seen, 0.0).softmax(dim=-1) * seen).to(v.dtype)
    output = (weights @ v).transpose(1, 2).contiguous()
    return AttentionOutput(output, scores.logsumexp(dim=-1).float())


def call_mask(call: AttentionCall) -> Tensor:
    """The mask of a call that is neither packed nor paged: bool ``[batch, queries, keys]``.

    Where keys are chosen by content, each key head has its own: ``[batch, kv_heads, queries,
    keys]``.
    """
    positions, chosen = call.positions(), None
    left = call.left_rows(positions)
    if call.selects:
        chosen = chosen_keys(call, call.selection or select(call))
    if call.decode_keys:
        late = decoding(call, positions)[:, None, :, None]
        left, pages = with_pages(call, choose(call))
        chosen = pages if chosen is None else (chosen & ~late) | pages
    keys = torch.arange(call.k.shape[1], device=call.k.device)[None]
    mask = visible(
        positions,
        keys,
        left,
        kv_start=call.kv_start,
        sink_tokens=call.sink_tokens,
        chosen=chosen,
    )
    if call.kv_lens is not None:
        exists = (keys < column(call.kv_lens))[:, None]
        mask = mask & (exists if chosen is None else exists[:, None])
    return mask.expand(call.q.shape[0], *mask.shape[1:])
