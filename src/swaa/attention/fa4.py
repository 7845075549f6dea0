"""FlashAttention-4: the whole mask by lists of visible key blocks.

Dense and window-only calls take its native paths. With sinks or full rows, two lists name the key
blocks of each query block: whole blocks, which every row sees, and partial ones, which are masked
inside (``fa4_masks``). Other blocks are never loaded. Lists are built once per mask and shared by
all layers with that mask.
"""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from swaa.attention.call import AttentionCall, AttentionOutput, current_device
from swaa.attention.fa4_lists import NEVER, make_lists, needs_gradient, some_rows_full
from swaa.extras import install_line

INSTALL = install_line("fa4")
FEW_ROWS = 192
"""Calls of at most this many query rows are left to kernels that split the keys."""
DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 80, 128, 256)
"""Head sizes that are tested. In the backward of 4.0.0b36, dQ is wrong at 80."""
BACKWARD_HEAD_DIMS = (128, 256)


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
    if head_dim not in HEAD_DIMS:
        return f"head_dim {head_dim} is none of those tested: {', '.join(map(str, HEAD_DIMS))}"
    if call.v.shape[3] != head_dim:
        return f"head_dim of k is {head_dim} and of v {call.v.shape[3]}; they must agree"
    return None


def _refused_arguments(call: AttentionCall) -> str | None:
    if call.selects:
        return "selected rows are served by the triton backend"
    if call.decode_keys:
        return "rows that choose pages are served by the triton backend"
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
    if not needs_gradient(call):
        return None
    if call.q.shape[3] not in BACKWARD_HEAD_DIMS:
        tested = " and ".join(map(str, BACKWARD_HEAD_DIMS))
        return f"its backward is tested at head_dim {tested}, not {call.q.shape[3]}"
    if _native_window(call) is not None:
        return None
    if torch.are_deterministic_algorithms_enabled():
        return "has no deterministic block-sparse backward on Hopper"
    return None


def attend(call: AttentionCall) -> AttentionOutput:
    """Attention through FlashAttention-4, differentiable, ``lse`` included."""
    with current_device(call.q):
        return _attend(call)


def _attend(call: AttentionCall) -> AttentionOutput:
    window = _native_window(call)
    if window is None:
        tail = None if needs_gradient(call) else _full_tail(call)
        return _attend_by_lists(call) if tail is None else _attend_in_two(call, tail)
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
    """``window_size`` when FlashAttention-4 itself has the mask, else None.

    Its windows do not count the query itself, and its queries are always the last positions.
    """
    if call.left is not None or not _rows_come_last(call):
        return None
    if call.window is None or _all_rows_full(call):
        return None, None
    if not some_rows_full(call):
        if not call.packed and call.k.shape[1] <= call.window + call.sink_tokens:
            return None, None  # so short that every row sees everything before it
        if call.sink_tokens == 0:
            return call.window - 1, 0
    return None


def _rows_come_last(call: AttentionCall) -> bool:
    if call.packed:
        return call.q_start is None
    last = call.k.shape[1] - call.q.shape[1]
    return isinstance(call.q_start, int) and call.q_start == last


def _all_rows_full(call: AttentionCall) -> bool:
    if not isinstance(call.full_from, int) or not isinstance(call.q_start, int):
        return False
    until = NEVER if call.full_until is None else call.full_until
    last = call.q_start + call.q.shape[1]
    return call.full_from <= call.q_start and isinstance(until, int) and until >= last


def _full_tail(call: AttentionCall) -> int | None:
    """The first row of a full tail, when it is known from integers and earlier rows slide."""
    if call.packed or call.left is not None or not _rows_come_last(call):
        return None
    if call.q.shape[0] > 1:  # the work of the other sequences hides the long block
        return None
    if not isinstance(call.full_from, int) or isinstance(call.full_until, Tensor):
        return None
    until = NEVER if call.full_until is None else call.full_until
    assert isinstance(call.q_start, int)
    row = call.full_from - call.q_start
    return row if until >= call.k.shape[1] and FEW_ROWS < row < call.q.shape[1] else None


def _attend_in_two(call: AttentionCall, row: int) -> AttentionOutput:
    """Full rows at the end next to the sliding ones, in two concurrent launches.

    The query block with the full rows sees every key and takes as long as hundreds of others. In
    one launch it would start last, and the GPU would idle until it ended; here it starts first.
    """
    batch, rows, heads, _ = call.q.shape
    output = torch.empty_like(call.q, memory_format=torch.contiguous_format)
    lse = call.q.new_empty((batch, heads, rows), dtype=torch.float32)
    keys = call.k.shape[1] - rows + row
    tail = replace(call, q=call.q[:, row:], window=None, full_from=None, q_start=keys)
    body = replace(call, q=call.q[:, :row], k=call.k[:, :keys], v=call.v[:, :keys], full_from=None)
    stream, side = torch.cuda.current_stream(call.q.device), _side_stream(call.q.device)
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        _forward_into(tail, output[:, row:], lse[:, :, row:])
    _forward_into(body, output[:, :row], lse[:, :, :row])
    stream.wait_stream(side)
    return AttentionOutput(output, lse)


def _forward_into(call: AttentionCall, output: Tensor, lse: Tensor) -> None:
    """Forward only, into part of a larger tensor (which the public function cannot)."""
    window = _native_window(call)
    options: dict[str, Any]
    if window is None:
        lists = make_lists(call)
        options = {
            "mask_mod": lists.mask,
            "aux_tensors": lists.tensors,
            "block_sparse_tensors": lists.forward,
        }
    else:
        options = {
            "causal": True,
            "window_size_left": window[0],
            "window_size_right": window[1],
        }
    _interface()._flash_attn_fwd(
        call.q, call.k, call.v, softmax_scale=call.scale, out=output, lse=lse, **options
    )


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _attend_by_lists(call: AttentionCall) -> AttentionOutput:
    lists = make_lists(call)
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


@functools.cache
def _interface() -> ModuleType:
    # FlashAttention-4 keeps compiled kernels on disk only if this is set before its import.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "swaa" / "fa4"
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(cache))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # its packages use deprecated parts of each other
        from flash_attn.cute import interface

    # Its compiler warns about its own argument for every kernel.
    warnings.filterwarnings("ignore", message="Argument aux_data", category=UserWarning)
    return interface
