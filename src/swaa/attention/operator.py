"""Attention as one opaque operator: what torch.compile calls instead of tracing a backend.

If the compiler traced a backend, it would rewrite its kernels, their launch arithmetic and its host
decisions. Inside an operator they run as they do in eager code, in CUDA graphs too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swaa.attention.api import swaa_attention
from swaa.attention.call import AttentionCall
from swaa.attention.mask import Position


@torch.library.custom_op("swaa::attention", mutates_args=())
def attention_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    sink_tokens: int,
    full_from: Tensor | None,
    full_until: Tensor | None,
    q_start: Tensor | None,
    kv_start: Tensor | None,
    scale: float,
    selected_keys: int,
    decode_keys: int,
    decode_from: Tensor | None,
    page_statistics: Tensor | None,
    backend: str,
) -> Tensor:
    """The output of :func:`swaa.swaa_attention`; positions are int32 ``[batch]``. Forward only."""
    return swaa_attention(
        q,
        k,
        v,
        window=window,
        sink_tokens=sink_tokens,
        full_from=full_from,
        full_until=full_until,
        q_start=q_start,
        kv_start=kv_start,
        scale=scale,
        selected_keys=selected_keys,
        decode_keys=decode_keys,
        decode_from=decode_from,
        page_statistics=page_statistics,
        backend=backend,
    ).output.contiguous()


@attention_operator.register_fake
def _shape_of_output(q: Tensor, k: Tensor, v: Tensor, *numbers: object, **more: object) -> Tensor:
    return q.new_empty((*q.shape[:3], v.shape[3]))


def attend_compiled(call: AttentionCall, backend: str) -> Tensor:
    """Serve a dense call from compiled code; output ``[batch, queries, heads, head_dim]``.

    Args:
        call: neither packed nor paged; without ``left``, ``kv_lens``, a selection or a gradient.
        backend: a name, or ``"auto"``.
    """
    batch, device = call.q.shape[0], call.q.device

    def tensor(value: Position | None) -> Tensor | None:
        if value is None or isinstance(value, Tensor):
            return value
        return torch.full((batch,), value, dtype=torch.int32, device=device)

    return attention_operator(
        call.q,
        call.k,
        call.v,
        call.window,
        call.sink_tokens,
        tensor(call.full_from),
        tensor(call.full_until),
        tensor(call.q_start),
        tensor(call.kv_start),
        call.scale,
        call.selected_keys,
        call.decode_keys,
        tensor(call.decode_from),
        call.page_statistics,
        backend,
    )


def is_plain(call: AttentionCall) -> bool:
    """Whether :func:`attend_compiled` can serve the call."""
    needs_gradient = torch.is_grad_enabled() and call.q.requires_grad
    return not (call.packed or call.paged or needs_gradient) and (
        call.left is None and call.kv_lens is None and call.selection is None
    )
