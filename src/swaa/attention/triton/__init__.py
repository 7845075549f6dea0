"""Our own kernels, NVIDIA Ampere to Blackwell and AMD: prefill, decode, backward."""

from __future__ import annotations

from dataclasses import replace

import torch
from triton import knobs

from swaa.attention.call import AttentionCall, AttentionOutput, attend_apart, current_device
from swaa.attention.pages import nothing_to_choose, rows_apart, without_pages
from swaa.attention.selection import nothing_to_select
from swaa.attention.triton import decode, prefill, scoring, selected
from swaa.attention.triton.backward import DifferentiableAttention
from swaa.attention.triton.sequences import numbers_of

FEW_ROWS = 16
"""Calls of at most this many query rows per sequence are decoding, served by split keys."""
HEAD_DIM_LIMIT = 256
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

serves_cpu = False
"""Whether CPU calls run in Triton's interpreter: tests switch it on. It is far too slow to be
chosen by ``backend="auto"``, and needs TRITON_INTERPRET=1 before triton is imported."""


def refusal(call: AttentionCall) -> str | None:
    """Why these kernels cannot serve the call, or None."""
    reason = _refused_tensors(call)
    if reason is not None:
        return reason
    if call.decode_keys:
        return decode.refusal(call)
    return decode.refusal(call) if call.paged else prefill.refusal(call)


def attend(call: AttentionCall) -> AttentionOutput:
    """Attention by the decode kernel for few rows or paged keys, else by the prefill kernel."""
    if call.decode_keys:
        return _attend_pages(call)
    if call.selects:
        # Block lists are per sequence: packed sequences are served one after the other.
        return attend_apart(call, _attend_selected) if call.packed else _attend_selected(call)
    with current_device(call.q):
        if _is_decode(call):
            return decode.attend(call)
        many = DifferentiableAttention.apply if prefill.needs_gradient(call) else prefill.forward
        return AttentionOutput(*many(call.q, call.k, call.v, numbers_of(call), call.scale))


def _attend_selected(call: AttentionCall) -> AttentionOutput:
    """The sliding pass; the chosen keys are added to its result."""
    if call.paged:
        call = call.gathered()
    sliding = replace(call, selected_keys=0, selection=None)
    if nothing_to_select(call):
        return attend(sliding)
    q, k, v, scale = call.q, call.k, call.v, call.scale
    numbers = numbers_of(call)
    with current_device(q):
        selection = call.selection or scoring.select(call)
        if prefill.needs_gradient(call):
            return AttentionOutput(
                *DifferentiableAttention.apply(q, k, v, numbers, scale, selection)
            )
        output, lse = attend(sliding)
        assert lse is not None
        lse = lse.contiguous()
        selected.add_selected(q, k, v, numbers, scale, selection, output, lse)
    return AttentionOutput(output, lse)


def _attend_pages(call: AttentionCall) -> AttentionOutput:
    """Rows before ``decode_from`` as usual; the others read pages, one row per tile."""
    if call.packed and (call.selects or not call.paged):
        return attend_apart(call, attend)  # statistics are stored per sequence or per cache page
    if not call.paged:
        if nothing_to_choose(call):
            return attend(without_pages(call))
        apart = rows_apart(call)
        if apart is not None:
            before, after = apart
            if after is None:
                return attend(without_pages(call))
            if before is not None:
                return _joined(attend(before), attend(after))
    if call.selects:
        return _one_by_one(call)
    with current_device(call.q):
        return decode.attend(call)


def _one_by_one(call: AttentionCall) -> AttentionOutput:
    """Serve each sequence by itself, where each has different rows that choose pages."""
    if call.paged:
        call = call.gathered()
    parts = [attend(call.one(n)) for n in range(len(call.q))]
    outputs, lses = zip(*parts, strict=True)
    return AttentionOutput(torch.cat(outputs), torch.cat(lses))


def _joined(before: AttentionOutput, after: AttentionOutput) -> AttentionOutput:
    assert before.lse is not None
    assert after.lse is not None
    output = torch.cat([before.output, after.output], dim=1)
    return AttentionOutput(output, torch.cat([before.lse, after.lse], dim=2))


def _is_decode(call: AttentionCall) -> bool:
    few = call.q.shape[1] <= FEW_ROWS and not prefill.needs_gradient(call)
    return call.paged or (few and decode.refusal(call) is None)


def _refused_tensors(call: AttentionCall) -> str | None:
    if not (call.q.is_cuda or (serves_cpu and knobs.runtime.interpret)):
        return f"its kernels need a GPU, the tensors are on {call.q.device}"
    if call.q.dtype not in DTYPES:
        return f"{call.q.dtype} is none of float16, bfloat16, float32"
    head_dim = call.q.shape[3]
    if head_dim > HEAD_DIM_LIMIT or head_dim % 8:
        return f"head_dim {head_dim} is not a multiple of 8 up to {HEAD_DIM_LIMIT}"
    if call.v.shape[3] != head_dim:
        return f"values of head_dim {call.v.shape[3]} with keys of {head_dim}"
    if call.scale <= 0:
        return f"the scale is {call.scale}; it must be positive"
    if any(x.stride(3) != 1 for x in (call.q, call.k, call.v)):
        return "the channels of q, k and v must lie side by side (stride 1)"
    return None
