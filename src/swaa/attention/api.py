"""The one attention function: validates its arguments, picks a backend, says why."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from swaa.attention.call import FP8, AttentionCall, AttentionOutput, BackendError, Selection
from swaa.attention.mask import Position
from swaa.attention.pages import PAGE
from swaa.attention.selection import KEY_BLOCK, ROW_BLOCK, row_block_count

MOST_TOKENS = 2**30
"""Largest window and number of sinks: a position plus it must fit an int32."""
BACKENDS = ("fa4", "triton", "sdpa", "reference")
"""Every backend, best first; ``backend="auto"`` takes the first that can serve the call."""


class BackendChoice(NamedTuple):
    """The backend that serves a call, and why each better one does not."""

    name: str
    refused: dict[str, str]


def swaa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    sink_tokens: int = 0,
    full_from: Position | None = None,
    full_until: Position | None = None,
    left: Tensor | None = None,
    q_start: Position | None = None,
    kv_start: Position | None = None,
    kv_lens: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    selected_keys: int = 0,
    selection: Selection | None = None,
    decode_keys: int = 0,
    decode_from: Position | None = None,
    page_statistics: Tensor | None = None,
    backend: str = "auto",
) -> AttentionOutput:
    """Exact causal attention through a sliding window, sink tokens and full rows.

    The query at position ``i`` sees the key at position ``j`` iff ``kv_start <= j <= i`` and
    (``j >= left[i]`` or ``j < kv_start + sink_tokens``), where ``left[i]`` is ``i - window + 1``,
    or ``kv_start`` for a full row. Differentiable in ``q``, ``k`` and ``v``.

    Args:
        q: ``[batch, queries, heads, head_dim]``; packed: ``[1, tokens, heads, head_dim]``.
        k: ``[batch, keys, kv_heads, head_dim]``; packed: ``[1, tokens, kv_heads, head_dim]``;
            paged: ``[pages, page_size, kv_heads, head_dim]``, any strides. Pages may hold
            ``torch.float8_e4m3fn`` while ``q`` has another type, in which all is computed. Where
            they were divided by a factor, multiply ``scale`` by that of the keys, and the output
            by that of the values.
        v: as ``k``.
        window: keys a sliding row sees, itself included; ``None`` makes every row full.
        sink_tokens: first real tokens of each sequence that every row sees.
        full_from: rows at positions in ``[full_from, full_until)`` see everything: an int, or
            int32 ``[batch]``. ``None``: no row is full.
        full_until: as ``full_from``; ``None``: no end.
        left: int32 ``[batch or 1, queries]`` (packed: ``[1, tokens]``), the leftmost key of each
            row; overrides ``window``, ``full_from`` and ``full_until``.
        q_start: position of the first query row, an int or int32 ``[batch]``. Default: the
            queries are the last positions.
        kv_start: position of the first real key, an int or int32 ``[batch]`` (left padding).
            Default 0. Positions before it are padding: no row sees them, their own rows are zero.
        kv_lens: int32 ``[batch]``, keys that exist per sequence; later slots may hold anything.
        cu_seqlens_q: int32 ``[sequences + 1]``, offsets of packed sequences; positions and
            ``left`` then count from each sequence's own start. Tokens after the last sequence get
            zero rows.
        cu_seqlens_k: as ``cu_seqlens_q`` for the keys; not used with ``block_table``.
        block_table: int32 ``[batch, pages]``, the page that holds each run of ``page_size`` keys;
            needs ``kv_lens``.
        scale: factor of the scores; default ``head_dim ** -0.5``.
        selected_keys: older keys that sliding rows see in addition to sinks and window, chosen by
            content in blocks of 64 for blocks of 128 rows (``swaa.attention.selection`` has the
            rule): a multiple of 64. The choice has no gradient.
        selection: blocks to see, given instead of chosen; not for packed or paged calls.
        decode_keys: most keys that full rows from ``decode_from`` on read in addition to sinks and
            window, chosen by content in pages of 16 for each row and key head
            (``swaa.attention.pages`` has the rule): a multiple of 16; 0: they read everything.
        decode_from: position of the first row that chooses, an int or int32 ``[batch]``; None:
            every full row does.
        page_statistics: statistics of the pages, ``[batch, pages, kv_heads, 2, head_dim]``, page
            by page from each sequence's first real key; with a block table ``[pages,
            page_size // 16, kv_heads, 2, head_dim]``. None: computed from the keys for this call.
        backend: ``"auto"`` or one of :data:`BACKENDS`.

    Returns:
        :class:`AttentionOutput`: output shaped as ``q``, and the log-sum-exp of the scores.

    Raises:
        TypeError: for a window or a number of sinks that is not a whole number.
        ValueError: for arguments that do not fit each other. Values of tensors on a GPU are not
            checked, because that would wait for the GPU.
        BackendError: when the named backend cannot serve the call; the message names those that
            can.
    """
    call = make_call(
        q,
        k,
        v,
        window=window,
        sink_tokens=sink_tokens,
        full_from=full_from,
        full_until=full_until,
        left=left,
        q_start=q_start,
        kv_start=kv_start,
        kv_lens=kv_lens,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        block_table=block_table,
        scale=scale,
        selected_keys=selected_keys,
        selection=selection,
        decode_keys=decode_keys,
        decode_from=decode_from,
        page_statistics=page_statistics,
    )
    name = choose_backend(call).name if backend == "auto" else backend
    if backend != "auto":
        require_backend(name, call)
    return load_backend(name).attend(call)


def make_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    sink_tokens: int = 0,
    full_from: Position | None = None,
    full_until: Position | None = None,
    left: Tensor | None = None,
    q_start: Position | None = None,
    kv_start: Position | None = None,
    kv_lens: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    selected_keys: int = 0,
    selection: Selection | None = None,
    decode_keys: int = 0,
    decode_from: Position | None = None,
    page_statistics: Tensor | None = None,
) -> AttentionCall:
    """Check the arguments of :func:`swaa_attention` and fill in the defaults."""
    _check_tensors(q, k, v, paged=block_table is not None)
    _check_count("window", window if window is not None else 1, 1, "key, or None for full rows")
    _check_count("sink_tokens", sink_tokens, 0, "tokens")
    _check_layout(q, k, kv_lens, cu_seqlens_q, cu_seqlens_k, block_table)
    sequences = q.shape[0] if cu_seqlens_q is None else len(cu_seqlens_q) - 1
    numbers = {
        "full_from": full_from,
        "full_until": full_until,
        "q_start": q_start,
        "kv_start": kv_start,
        "kv_lens": kv_lens,
        "decode_from": decode_from,
    }
    for name, value in numbers.items():
        if isinstance(value, Tensor) and value.shape != (sequences,):
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected ({sequences},)")
    batch, rows = q.shape[:2]
    if left is not None and tuple(left.shape) not in ((1, rows), (batch, rows)):
        raise ValueError(f"left has shape {tuple(left.shape)}; expected ({batch} or 1, {rows})")
    if q_start is None and cu_seqlens_q is None:
        if kv_lens is None and rows > k.shape[1]:
            raise ValueError(
                f"{rows} queries and {k.shape[1]} keys: the queries are the last positions unless"
                " q_start says where they begin"
            )
        q_start = (k.shape[1] if kv_lens is None else kv_lens) - rows
    call = AttentionCall(
        q=q,
        k=k,
        v=v,
        window=window,
        sink_tokens=sink_tokens,
        full_from=full_from,
        full_until=full_until,
        left=left,
        q_start=q_start,
        kv_start=0 if kv_start is None else kv_start,
        kv_lens=kv_lens,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        block_table=block_table,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        selected_keys=selected_keys,
        selection=selection,
        decode_keys=decode_keys,
        decode_from=decode_from,
        page_statistics=page_statistics,
    )
    _check_selection(call)
    _check_decode_keys(call)
    return call


def _check_count(name: str, value: object, least: int, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{name} is {value!r}; expected a whole number")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least} {unit}")
    if isinstance(value, int) and value > MOST_TOKENS:
        raise ValueError(f"{name} is above {MOST_TOKENS:,}, the most that is taken")


def _check_selection(call: AttentionCall) -> None:
    _check_count("selected_keys", call.selected_keys, 0, "keys")
    if call.selected_keys % KEY_BLOCK:
        raise ValueError(
            f"selected_keys is {call.selected_keys}; keys are chosen in blocks of {KEY_BLOCK}:"
            f" give a multiple"
        )
    if call.selection is None:
        return
    if call.packed or call.paged:
        raise ValueError("a selection names the blocks of dense calls: pass sequences apart")
    shape = (call.q.shape[0], call.k.shape[2], row_block_count(call))
    if call.selection.blocks.shape[:3] != shape or call.selection.counts.shape != shape:
        raise ValueError(
            f"selection has blocks of shape {tuple(call.selection.blocks.shape)} and counts of"
            f" {tuple(call.selection.counts.shape)}; expected {shape} (batch, kv heads, blocks of"
            f" {ROW_BLOCK} rows), with one more axis for the blocks"
        )


def _check_decode_keys(call: AttentionCall) -> None:
    _check_count("decode_keys", call.decode_keys, 0, "keys")
    if not call.decode_keys:
        return
    if call.decode_keys % PAGE:
        raise ValueError(
            f"decode_keys is {call.decode_keys}; keys are read in pages of {PAGE}: give a multiple"
        )
    if call.window is None:
        raise ValueError(
            "decode_keys are read besides a window: give window, and full_from=0 where every row"
            " is full"
        )
    if call.selection is not None or (call.selected_keys and call.decode_from is None):
        raise ValueError(
            "with decode_keys, rows from decode_from on are not selected: give decode_from, and"
            " selected_keys instead of a selection"
        )
    page = call.k.shape[1] if call.paged else PAGE
    if page % PAGE:
        raise ValueError(f"pages of {page} keys hold no whole number of pages of {PAGE}")
    if call.page_statistics is None:
        return
    shape = (*call.k.shape[2:3], 2, call.k.shape[3])
    given = tuple(call.page_statistics.shape)
    rows = (call.k.shape[0], page // PAGE) if call.paged else (call.k.shape[0],)
    if given[: len(rows)] != rows or given[2:] != shape or len(given) != 5:
        raise ValueError(
            f"page_statistics has shape {given}; expected {(*rows, *shape)}"
            if call.paged
            else f"page_statistics has shape {given}; expected ({rows[0]}, pages, *{shape})"
        )


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, *, paged: bool) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; expected [batch, tokens, heads, head_dim]"
            )
        if x.dtype == FP8:
            _check_fp8(name, q, k, v, paged=paged)
        elif x.dtype != q.dtype:
            raise ValueError(f"{name} is {x.dtype} and q is {q.dtype}; they must agree")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} and q on {q.device}; they must agree")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k has shape {tuple(k.shape)} and v {tuple(v.shape)}; they must agree")
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"q has head_dim {q.shape[3]} and k {k.shape[3]}; they must agree")
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads are not a multiple of {k.shape[2]} kv heads")


def _check_fp8(name: str, q: Tensor, k: Tensor, v: Tensor, *, paged: bool) -> None:
    if not paged or q.dtype == FP8:
        raise ValueError(
            f"{name} is {FP8}, which only keys and values in pages may be: give block_table, or"
            " convert to float16, bfloat16 or float32"
        )
    if k.dtype != v.dtype:
        raise ValueError(f"k is {k.dtype} and v {v.dtype}; both are {FP8} or neither")


def _check_layout(
    q: Tensor,
    k: Tensor,
    kv_lens: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    block_table: Tensor | None,
) -> None:
    if block_table is not None:
        if kv_lens is None:
            raise ValueError("block_table needs kv_lens, the number of keys of each sequence")
        if cu_seqlens_k is not None:
            raise ValueError("cu_seqlens_k and block_table exclude each other: pass kv_lens")
        sequences = q.shape[0] if cu_seqlens_q is None else len(cu_seqlens_q) - 1
        if block_table.ndim != 2 or block_table.shape[0] != sequences:
            raise ValueError(
                f"block_table has shape {tuple(block_table.shape)};"
                f" expected ({sequences}, pages per sequence)"
            )
    elif (cu_seqlens_q is None) != (cu_seqlens_k is None):
        raise ValueError("packed sequences need both cu_seqlens_q and cu_seqlens_k")
    elif cu_seqlens_k is not None and kv_lens is not None:
        raise ValueError("kv_lens and cu_seqlens_k exclude each other")
    if cu_seqlens_q is not None:
        _check_packed(q, k, cu_seqlens_q, cu_seqlens_k)
    if kv_lens is not None and block_table is None and _is_readable(kv_lens):
        longest = int(kv_lens.max()) if kv_lens.numel() else 0
        if longest > k.shape[1]:
            raise ValueError(f"kv_lens holds {longest}, but there are {k.shape[1]} key slots")
    if block_table is None and q.shape[0] != k.shape[0]:
        raise ValueError(f"q has batch {q.shape[0]} and k {k.shape[0]}; they must agree")


def _check_packed(q: Tensor, k: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor | None) -> None:
    if q.shape[0] != 1:
        raise ValueError(f"packed q must have batch 1, got {q.shape[0]}")
    if cu_seqlens_k is not None:
        if cu_seqlens_q.ndim != 1 or cu_seqlens_q.shape != cu_seqlens_k.shape:
            raise ValueError(
                f"cu_seqlens_q has shape {tuple(cu_seqlens_q.shape)} and cu_seqlens_k"
                f" {tuple(cu_seqlens_k.shape)}; both are (sequences + 1,)"
            )
        _check_offsets("cu_seqlens_k", cu_seqlens_k, k.shape[1])
    _check_offsets("cu_seqlens_q", cu_seqlens_q, q.shape[1])


def _check_offsets(name: str, offsets: Tensor, tokens: int) -> None:
    """Offsets must start at 0, never fall, and stay within the tokens; checked on the CPU only."""
    if not _is_readable(offsets):
        return
    values = offsets.tolist()
    if not values or values[0] != 0 or sorted(values) != values or values[-1] > tokens:
        raise ValueError(f"{name} is {values}; expected offsets from 0 up to at most {tokens}")


def _is_readable(x: Tensor) -> bool:
    """Whether a tensor's values can be read without waiting for a device or breaking a graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def load_backend(name: str) -> ModuleType:
    """Import a backend's module on first use.

    Raises:
        BackendError: for a name that is not a backend.
        ImportError: when a package that the backend needs is not installed.
    """
    if name not in BACKENDS:
        raise BackendError(f"no attention backend {name!r}; choose from {', '.join(BACKENDS)}")
    return importlib.import_module(f"swaa.attention.{name}")


@functools.cache
def missing_package(name: str) -> str | None:
    """Why a backend's module cannot be imported, or None; tried once per process."""
    try:
        load_backend(name)
    except ImportError as error:
        return str(error)
    return None


def why_not(name: str, call: AttentionCall) -> str | None:
    """The reason why a backend cannot serve a call, or None when it can.

    Raises:
        BackendError: for a name that is not a backend.
    """
    return missing_package(name) or load_backend(name).refusal(call)


def choose_backend(call: AttentionCall) -> BackendChoice:
    """Take the first backend of :data:`BACKENDS` that can serve the call."""
    refused: dict[str, str] = {}
    for name in BACKENDS:
        reason = why_not(name, call)
        if reason is None:
            return BackendChoice(name, refused)
        refused[name] = reason
    raise BackendError(f"no backend can serve this call: {refused}")


def require_backend(name: str, call: AttentionCall) -> None:
    """Raise :class:`BackendError` with the reason and the alternatives unless ``name`` serves."""
    reason = why_not(name, call)
    if reason is not None:
        able = [other for other in BACKENDS if other != name and why_not(other, call) is None]
        raise BackendError(f"backend {name!r}: {reason}; these can: {', '.join(able)}")
