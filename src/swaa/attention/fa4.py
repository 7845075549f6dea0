"""FlashAttention-4: the whole mask in one call, by lists of visible key blocks.

Dense and window-only calls take its native paths. With sinks or full rows, blocks that every row
of a query block sees are listed as whole, the others are masked inside (``fa4_masks``); what is on
neither list is never loaded. Lists are built once per mask and shared by all layers that have it.
"""

from __future__ import annotations

import functools
import os
import time
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swaa.attention import block_lists
from swaa.attention.block_lists import BlockLists, Rows
from swaa.attention.call import AttentionCall, AttentionOutput
from swaa.attention.mask import left_bounds

INSTALL = "pip install 'swaa[fa4]'"
FEW_ROWS = 64
"""Calls of at most this many query rows are left to kernels that split the keys."""
DTYPES = (torch.float16, torch.bfloat16)
NEVER = 2**31 - 1
KEPT_LISTS = 8
"""Masks whose block lists are kept; at 131,072 tokens one takes 8 MiB if it has full rows."""


def refusal(call: AttentionCall) -> str | None:
    """Why FlashAttention-4 cannot serve the call, or None when it can."""
    return (
        _refused_tensors(call) or _refused_arguments(call) or _refused_backward(call) or missing()
    )


def missing() -> str | None:
    """How to install FlashAttention-4, or None when it is here."""
    try:
        _interface()
    except ImportError as error:
        return f"FlashAttention-4 cannot be imported ({error}): {INSTALL}"
    return None


def _refused_tensors(call: AttentionCall) -> str | None:
    if not call.q.is_cuda:
        return f"needs a GPU, got tensors on {call.q.device}"
    if torch.cuda.get_device_capability(call.q.device) != (9, 0):
        return "is tested on Hopper (compute capability 9.0) only"
    if call.q.dtype not in DTYPES:
        return f"dtype {call.q.dtype} is neither float16 nor bfloat16"
    head_dim = call.q.shape[3]
    if head_dim % 8 or not 8 <= head_dim <= 256:
        return f"head_dim {head_dim} is no multiple of 8 up to 256"
    if call.v.shape[3] != head_dim:
        return f"head_dim of k is {head_dim} and of v {call.v.shape[3]}; they must agree"
    return None


def _refused_arguments(call: AttentionCall) -> str | None:
    if call.paged:
        return "reads no pages together with block lists on Hopper"
    if call.kv_lens is not None:
        return "does not skip unused key slots (kv_lens)"
    if isinstance(call.kv_start, Tensor) or call.kv_start:
        return "does not skip left padding (kv_start)"
    if call.q.shape[1] <= FEW_ROWS:
        return f"splits no keys on Hopper, too slow for {call.q.shape[1]} query rows"
    return None


def _refused_backward(call: AttentionCall) -> str | None:
    if not _needs_gradient(call) or _native_window(call) is not None:
        return None
    if torch.are_deterministic_algorithms_enabled():
        return "has no deterministic block-sparse backward on Hopper"
    return None


def _needs_gradient(call: AttentionCall) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in (call.q, call.k, call.v))


def attend(call: AttentionCall) -> AttentionOutput:
    """Attention through FlashAttention-4, differentiable, ``lse`` included."""
    window = _native_window(call)
    if window is None:
        return _attend_by_lists(call)
    options: dict[str, Any] = {
        "softmax_scale": call.scale,
        "causal": True,
        "window_size": window,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "return_lse": True,
    }
    if not call.packed:
        return AttentionOutput(*_interface().flash_attn_func(call.q, call.k, call.v, **options))
    output, lse = _interface().flash_attn_varlen_func(
        call.q[0],
        call.k[0],
        call.v[0],
        cu_seqlens_q=call.cu_seqlens_q,
        cu_seqlens_k=call.cu_seqlens_k,
        **options,
    )
    return AttentionOutput(output[None], lse[None])


def _native_window(call: AttentionCall) -> tuple[int | None, int | None] | None:
    """``window_size`` when FlashAttention-4 knows the mask itself, else None.

    Its windows do not count the query itself, and its queries are always the last positions.
    """
    if call.left is not None or not _rows_come_last(call):
        return None
    if call.window is None or _all_rows_full(call):
        return None, None
    if not _some_rows_full(call):
        if not call.packed and call.k.shape[1] <= call.window + call.sink_tokens:
            return None, None  # short enough for every row to see everything before it
        if call.sink_tokens == 0:
            return call.window - 1, 0
    return None


def _rows_come_last(call: AttentionCall) -> bool:
    if call.packed:
        return call.q_start is None
    last = call.k.shape[1] - call.q.shape[1]
    return isinstance(call.q_start, int) and call.q_start == last


def _some_rows_full(call: AttentionCall) -> bool:
    """Whether a row may be full: certain for integers, assumed where tensors hide it."""
    if call.full_from is None:
        return False
    if call.packed or not isinstance(call.q_start, int):
        return True
    begins_after = isinstance(call.full_from, int) and call.full_from >= (
        call.q_start + call.q.shape[1]
    )
    ends_before = isinstance(call.full_until, int) and call.full_until <= call.q_start
    return not (begins_after or ends_before)


def _all_rows_full(call: AttentionCall) -> bool:
    if not isinstance(call.full_from, int) or not isinstance(call.q_start, int):
        return False
    until = NEVER if call.full_until is None else call.full_until
    last = call.q_start + call.q.shape[1]
    return call.full_from <= call.q_start and isinstance(until, int) and until >= last


class Lists(NamedTuple):
    """Block lists in FlashAttention-4's form, and the tensors that its mask function reads."""

    forward: Any
    backward: Any
    mask: Any
    tensors: list[Tensor] | None


def _attend_by_lists(call: AttentionCall) -> AttentionOutput:
    lists = _lists(call)
    output, lse = _interface().flash_attn_func(
        call.q,
        call.k,
        call.v,
        softmax_scale=call.scale,
        mask_mod=lists.mask,
        aux_tensors=lists.tensors,
        block_sparse_tensors=lists.forward,
        block_sparse_tensors_bwd=lists.backward,
        return_lse=True,
    )
    return AttentionOutput(output, lse)


_kept: OrderedDict[tuple[Any, ...], tuple[list[Tensor], list[int], Lists]] = OrderedDict()


def _lists(call: AttentionCall) -> Lists:
    """Block lists of a call, kept per mask: by value for integers, by identity for tensors."""
    numbers = (call.full_from, call.full_until, call.q_start, call.left, *_offsets(call))
    tensors = [x for x in numbers if isinstance(x, Tensor)]
    if any(x.is_inference() for x in tensors):  # whether these changed cannot be told
        return _build_lists(call)
    key = (
        *(id(x) if isinstance(x, Tensor) else x for x in numbers),
        call.q.device,
        call.q.shape[0] if tensors else 1,
        *(call.q.shape[1], call.k.shape[1], call.q.shape[3]),
        *(call.window, call.sink_tokens, _needs_gradient(call)),
    )
    versions = [x._version for x in tensors]
    found = _kept.get(key)
    if found is None or found[1] != versions:
        # The tensors are kept too: as long as they live, no other tensor has their identity.
        _kept[key] = found = (tensors, versions, _build_lists(call))
    _kept.move_to_end(key)
    while len(_kept) > KEPT_LISTS:
        _kept.popitem(last=False)
    return found[2]


def _offsets(call: AttentionCall) -> tuple[Tensor | None, Tensor | None]:
    return call.cu_seqlens_q, call.cu_seqlens_k


def _build_lists(call: AttentionCall) -> Lists:
    from swaa.attention import fa4_masks  # imports FlashAttention-4

    keys, head_dim = call.k.shape[1], call.q.shape[3]
    rows = _rows_of(call)
    block_q, block_k = forward_blocks(head_dim)
    most = -(-keys // block_k)
    if _only_slides(call):
        assert call.window is not None
        most = block_lists.most_key_blocks(
            keys,
            window=call.window,
            sink_tokens=call.sink_tokens,
            block_q=block_q,
            block_k=block_k,
        )
    sinks = call.sink_tokens
    ranges = block_lists.block_ranges(rows, sink_tokens=sinks, block_q=block_q, block_k=block_k)
    forward = _in_their_form(block_lists.key_lists(ranges, most=most), (block_q, block_k))
    backward = None
    if _needs_gradient(call):
        size = backward_blocks(head_dim)
        ranges = block_lists.block_ranges(rows, sink_tokens=sinks, block_q=size[0], block_k=size[1])
        lists = block_lists.query_lists(ranges, key_blocks=-(-keys // size[1]))
        backward = _in_their_form(lists, size)
    integers = not any(
        isinstance(x, Tensor) for x in (call.q_start, call.full_from, call.full_until)
    )
    if call.packed or call.left is not None or not integers:
        tensors = [_padded(x, call.q.shape[0]) for x in rows]
        return Lists(forward, backward, fa4_masks.by_row(sinks), tensors)
    window = keys if call.window is None else call.window
    if call.q_start == 0 and not _some_rows_full(call):
        return Lists(forward, backward, fa4_masks.sliding(window, sinks), None)
    numbers = (
        call.q_start,
        NEVER if call.full_from is None else call.full_from,
        NEVER if call.full_until is None else call.full_until,
    )
    tensors = [torch.tensor(numbers, dtype=torch.int32, device=call.q.device)]
    return Lists(forward, backward, fa4_masks.with_full_rows(window, sinks), tensors)


def _only_slides(call: AttentionCall) -> bool:
    """Whether no query block can see more key blocks than its window and the sinks hold."""
    if call.window is None or call.left is not None or _some_rows_full(call):
        return False
    # Where packed queries have cached keys, a range may span the keys between two sequences.
    return not call.packed or call.cu_seqlens_q is call.cu_seqlens_k


def _rows_of(call: AttentionCall) -> Rows:
    """The mask row by row, ``[batch or 1, rows]``, along the keys as they lie in memory."""
    if not call.packed:
        position = call.positions()
        left = call.left_rows(position)
        return Rows(*torch.broadcast_tensors(position, left, torch.zeros_like(left)))
    assert call.cu_seqlens_q is not None
    assert call.cu_seqlens_k is not None
    ends_q, ends_k = call.cu_seqlens_q.long(), call.cu_seqlens_k.long()
    token = torch.arange(call.q.shape[1], device=call.q.device)
    sequence = torch.searchsorted(ends_q, token, right=True).clamp(1, len(ends_q) - 1) - 1
    start = ends_k[sequence]
    q_start = call.q_start
    if q_start is None:
        q_start = ends_k.diff() - ends_q.diff()
    if isinstance(q_start, Tensor):
        q_start = q_start[sequence]
    position = token - ends_q[sequence] + q_start
    if call.left is not None:
        left = call.left[0].long()
    else:
        left = left_bounds(
            position[:, None],
            window=call.window,
            full_from=_of_token(call.full_from, sequence),
            full_until=_of_token(call.full_until, sequence),
        )[:, 0]
    return Rows((position + start)[None], (left + start)[None], start[None])


def _of_token(value: int | Tensor | None, sequence: Tensor) -> int | Tensor | None:
    return value[sequence] if isinstance(value, Tensor) else value


def _padded(x: Tensor, batch: int) -> Tensor:
    """A tensor for the mask function, which reads up to one block past the last row."""
    x = torch.cat([x, x[:, -1:].expand(-1, 256)], dim=1)
    return x.int().expand(batch, -1).contiguous()


def _in_their_form(lists: BlockLists, block_size: tuple[int, int]) -> Any:
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    return BlockSparseTensorsTorch(*(x[:, None] for x in lists), block_size=block_size)


def forward_blocks(head_dim: int) -> tuple[int, int]:
    """Query rows and keys of a listed block: the tiles that FlashAttention-4 takes on Hopper."""
    if head_dim <= 96:
        return 192, 128
    if head_dim <= 128:
        return 128, 128
    return (128, 112) if head_dim <= 192 else (128, 80)


def backward_blocks(head_dim: int) -> tuple[int, int]:
    """As :func:`forward_blocks`, for its backward."""
    if head_dim <= 128:
        return 128, 128
    return (128, 96) if head_dim <= 192 else (128, 64)


@functools.cache
def _interface() -> ModuleType:
    # Compiled kernels are kept on disk only if this is set before the import.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "swaa" / "fa4"
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(cache))
    from flash_attn.cute import interface

    return interface


def warm_up(
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int | None,
    sink_tokens: int = 0,
    full_rows: bool = False,
    backward: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cuda",
) -> float:
    """Compile the kernels of a model before its first prompt, or load them from disk.

    Args:
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: channels per head.
        window: keys a sliding row sees, itself included.
        sink_tokens: first tokens that every row sees.
        full_rows: whether some rows of a sliding layer are full (dense tail, full decode).
        backward: whether gradients are wanted too.
        dtype: of the model.
        device: of the model.

    Returns:
        Seconds it took.

    Raises:
        BackendError: when FlashAttention-4 cannot serve such a model here.
    """
    from swaa.attention.api import swaa_attention

    begin = time.perf_counter()
    length = (window or 0) + sink_tokens + 2 * FEW_ROWS + 1
    shape = (1, length, heads, head_dim)
    q = torch.randn(shape, dtype=dtype, device=device, requires_grad=backward)
    k, v = torch.randn((2, 1, length, kv_heads, head_dim), dtype=dtype, device=device).unbind()
    for full_from in (None, length - 1)[: 1 + full_rows]:
        output = swaa_attention(
            *(q, k, v),
            window=window,
            sink_tokens=sink_tokens,
            full_from=full_from,
            backend="fa4",
        ).output
        if backward:
            output.sum().backward()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begin
