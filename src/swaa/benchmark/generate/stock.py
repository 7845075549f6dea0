"""The best stock attention that runs here: found by measuring, not assumed."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel, varlen
from torch.nn.functional import scaled_dot_product_attention

from swaa.attention import swaa_attention
from swaa.attention.call import AttentionCall
from swaa.benchmark.generate.timing import time_calls

Attend = Callable[[AttentionCall], Tensor]
"""Full causal attention for a call: the query rows are the last positions."""

FEW_ROWS = 16
"""A call with at most this many rows is decoding."""
LARGEST_ERROR = 2e-2
"""Largest relative error of an output in 16 bits; correct kernels have 3e-3."""


class Stock(NamedTuple):
    """A kernel from torch or from another package.

    Attributes:
        name: for tables.
        attend: the kernel; fails where it is not installed or cannot run.
        chunks: whether it serves prompts whose earlier part is cached.
    """

    name: str
    attend: Attend
    chunks: bool = True


class Winner(NamedTuple):
    """The fastest stock kernel of a phase.

    Attributes:
        stock: the kernel.
        tried: seconds of each kernel for the same work, or why it was not timed.
    """

    stock: Stock
    tried: dict[str, float | str]


class StockAttention:
    """Serves the calls of a model whose layers are all full, instead of our backends."""

    def __init__(self, prefill: Stock, decode: Stock) -> None:
        self._prefill = prefill.attend
        self._decode = decode.attend

    def run(self, call: AttentionCall) -> Tensor:
        """See :meth:`swaa.integrations.transformers.attention.Backends.run`."""
        few = call.q.shape[1] <= FEW_ROWS
        return self._decode(call) if few else self._prefill(call)


def find_best(
    stocks: list[Stock],
    call: AttentionCall,
    checks: list[AttentionCall],
    *,
    progress: Callable[[str], None] = lambda _line: None,
) -> Winner:
    """Time every correct kernel, and return the fastest.

    Args:
        stocks: to compare.
        call: what is timed.
        checks: small calls, on which each must first agree with the reference; those with more
            keys than rows are left out for kernels without chunks.
        progress: takes one line before a kernel is timed.

    Raises:
        ValueError: when none can run.
    """
    tried: dict[str, float | str] = {}
    seconds: dict[str, float] = {}
    for stock in stocks:
        try:
            for check in checks:
                if stock.chunks or check.q.shape[1] == check.k.shape[1]:
                    _require_right(stock, check)
            progress(f"timing {stock.name}")
            seconds[stock.name] = time_calls(functools.partial(stock.attend, call))
            tried[stock.name] = seconds[stock.name]
        except Exception as error:  # a kernel that fails is out, and the table says why
            tried[stock.name] = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    if not seconds:
        raise ValueError(f"no stock attention runs here: {tried}")
    best = min(seconds, key=lambda name: seconds[name])
    return Winner(next(stock for stock in stocks if stock.name == best), tried)


def prefill_stocks() -> list[Stock]:
    """Kernels for prompts."""
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    return [
        Stock("FA4", _flash("flash_attn.cute.interface")),
        Stock("FA3", _flash("flash_attn_interface")),
        Stock("FA2", _flash("flash_attn")),
        Stock("aten varlen", _aten_varlen),
        Stock("SDPA flash", functools.partial(_sdpa, flash), chunks=False),
        Stock("SDPA cuDNN", functools.partial(_sdpa, cudnn), chunks=False),
        Stock("SDPA masked", _sdpa_masked),
    ]


def decode_stocks() -> list[Stock]:
    """Kernels for one row per sequence.

    ``every slot`` reads the whole static cache, including slots of tokens to come: slightly more
    than needed, but without a mask, which is the fastest that torch can do.
    """
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    return [
        Stock("FA3 with cache", _flash_cached("flash_attn_interface")),
        Stock("FA2 with cache", _flash_cached("flash_attn")),
        Stock("SDPA flash, every slot", functools.partial(_packed_heads, flash)),
        Stock("SDPA cuDNN, every slot", functools.partial(_packed_heads, cudnn)),
        Stock("SDPA masked", _sdpa_masked),
    ]


def _require_right(stock: Stock, call: AttentionCall) -> None:
    expected = swaa_attention(call.q, call.k, call.v, window=None, backend="reference").output
    actual = stock.attend(call)
    if actual.shape != expected.shape:
        raise AssertionError(f"wrong shape {tuple(actual.shape)}")
    error = float((actual.double() - expected.double()).norm() / expected.double().norm())
    if not error < LARGEST_ERROR:
        raise AssertionError(f"wrong output: off by {error:.1e}")


def _flash(module: str) -> Attend:
    def attend(call: AttentionCall) -> Tensor:
        function = importlib.import_module(module).flash_attn_func
        output = function(call.q, call.k, call.v, causal=True)
        return output[0] if isinstance(output, tuple) else output

    return attend


def _flash_cached(module: str) -> Attend:
    def attend(call: AttentionCall) -> Tensor:
        function = importlib.import_module(module).flash_attn_with_kvcache
        options: dict[str, Any] = {"cache_seqlens": call.kv_lens, "causal": True}
        output = function(call.q, call.k, call.v, **options)
        return output[0] if isinstance(output, tuple) else output

    return attend


def _aten_varlen(call: AttentionCall) -> Tensor:
    (batch, rows, *_), keys = call.q.shape, call.k.shape[1]
    options: dict[str, Any] = {}
    parameters = inspect.signature(varlen.varlen_attn).parameters
    if "enable_gqa" in parameters:
        options["enable_gqa"] = True
    options |= {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    q, k, v = (x.flatten(0, 1) for x in (call.q, call.k, call.v))
    ends = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
    output = varlen.varlen_attn(q, k, v, ends * rows, ends * keys, rows, keys, **options)
    assert isinstance(output, Tensor)
    return output.unflatten(0, (batch, rows))


def _sdpa(backend: SDPBackend, call: AttentionCall) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (call.q, call.k, call.v))
    with sdpa_kernel(backend):
        output = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return output.transpose(1, 2)


def _sdpa_masked(call: AttentionCall) -> Tensor:
    """Whatever torch picks for a mask; in decoding, the group's query heads are packed."""
    rows, keys = call.q.shape[1], call.k.shape[1]
    slots = torch.arange(keys, device=call.q.device)
    if rows == 1:
        filled = slots.new_tensor([keys]) if call.kv_lens is None else call.kv_lens
        return _packed(call, mask=(slots[None] < filled[:, None])[:, None, None])
    q, k, v = (x.transpose(1, 2) for x in (call.q, call.k, call.v))
    mask = slots[None] <= slots[keys - rows :, None]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def _packed_heads(backend: SDPBackend, call: AttentionCall) -> Tensor:
    with sdpa_kernel(backend):
        return _packed(call, mask=None)


def _packed(call: AttentionCall, mask: Tensor | None) -> Tensor:
    batch, _, heads, head_dim = call.q.shape
    k, v = (x.transpose(1, 2) for x in (call.k, call.v))
    rows = call.q.reshape(batch, k.shape[1], -1, head_dim)
    output = scaled_dot_product_attention(rows, k, v, attn_mask=mask)
    return output.reshape(batch, 1, heads, head_dim)
