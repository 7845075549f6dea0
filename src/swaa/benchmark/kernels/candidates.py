"""The kernels that are compared: our backends, and the best ones in torch or FA4."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel, varlen
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from swaa.attention import swaa_attention
from swaa.attention.pages import page_statistics
from swaa.benchmark.kernels.work import Mask

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A kernel and the mask that it computes.

    ``prepare(queries, keys)`` makes the function that is timed; whatever a caller would reuse
    (block masks, offsets) is made before timing.
    """

    name: str
    mask: Mask
    prepare: Callable[[int, int], Attention]
    ours: bool = False


def candidates(
    phase: str, mask: Mask, *, backends: tuple[str, ...], stock: bool
) -> list[Candidate]:
    """Kernels worth comparing in a phase.

    Args:
        phase: one of :data:`swaa.benchmark.kernels.work.PHASES`.
        mask: of our kernels, and of the stock kernels that support it.
        backends: names of our backends.
        stock: whether to compare with stock kernels.
    """
    if mask.decode_keys:  # nothing that is installed here chooses so
        return [_choosing(name, mask) for name in backends]
    found = [_ours(name, mask) for name in backends]
    if not stock:
        return found
    full, window = Mask(window=None), Mask(window=mask.window)
    if phase == "decode":
        flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
        if mask.window is None:
            found.append(Candidate(name="SDPA flash", mask=full, prepare=_packed_heads(flash)))
            found.append(Candidate(name="SDPA cuDNN", mask=full, prepare=_packed_heads(cudnn)))
            return found
        prepare = _packed_heads(flash, mask.window)
        found.append(Candidate(name="SDPA flash on a slice", mask=window, prepare=prepare))
        found.append(Candidate(name="FlexAttention", mask=mask, prepare=_flex(mask)))
        return found
    if mask.window is not None:
        found.append(Candidate(name="FlexAttention", mask=mask, prepare=_flex(mask)))
        if "window_size" in inspect.signature(varlen.varlen_attn).parameters:
            found.append(Candidate(name="aten varlen", mask=window, prepare=_aten_varlen(window)))
    for name, backend in (
        ("SDPA flash", SDPBackend.FLASH_ATTENTION),
        ("SDPA cuDNN", SDPBackend.CUDNN_ATTENTION),
    ):
        found.append(Candidate(name=name, mask=full, prepare=_sdpa(backend)))
    if _has_fa4():
        found.append(Candidate(name="FA4", mask=full, prepare=_fa4_dense))
        if mask.window is not None and phase == "prefill":
            raw = _fa4_block_sparse(mask)
            found.append(Candidate(name="FA4 block-sparse by hand", mask=mask, prepare=raw))
    return found


def _ours(backend: str, mask: Mask) -> Candidate:
    def prepare(queries: int, keys: int) -> Attention:
        return lambda q, k, v: (
            swaa_attention(
                *(q, k, v), window=mask.window, sink_tokens=mask.sink_tokens, backend=backend
            ).output
        )

    return Candidate(name=f"swaa {backend}", mask=mask, prepare=prepare, ours=True)


def _choosing(backend: str, mask: Mask) -> Candidate:
    """Decoding rows that choose among pages, whose statistics a cache has ready."""

    def prepare(queries: int, keys: int) -> Attention:
        statistics: dict[int, Tensor] = {}

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if k.data_ptr() not in statistics:
                statistics[k.data_ptr()] = page_statistics(k)
            return swaa_attention(
                *(q, k, v),
                window=mask.window,
                sink_tokens=mask.sink_tokens,
                full_from=0,
                decode_keys=mask.decode_keys,
                page_statistics=statistics[k.data_ptr()],
                backend=backend,
            ).output

        return attend

    return Candidate(name=f"swaa {backend}", mask=mask, prepare=prepare, ours=True)


def _sdpa(backend: SDPBackend) -> Callable[[int, int], Attention]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(backend):
            output = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return output.transpose(1, 2)

    return lambda queries, keys: attend


def _packed_heads(backend: SDPBackend, last: int = 0) -> Callable[[int, int], Attention]:
    """One query row: the query heads of a group become rows, so that keys are read once."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x[:, -last:].transpose(1, 2) for x in (k, v))
        batch, _, heads, head_dim = q.shape
        with sdpa_kernel(backend):
            rows = q.view(batch, k.shape[1], -1, head_dim)
            return scaled_dot_product_attention(rows, k, v).view(batch, 1, heads, head_dim)

    return lambda queries, keys: attend


def _flex(mask: Mask) -> Callable[[int, int], Attention]:
    width, sinks = mask.window, mask.sink_tokens
    assert width is not None

    def prepare(queries: int, keys: int) -> Attention:
        first = keys - queries

        def kept(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            position = i + first
            return (j <= position) & ((j > position - width) | (j < sinks))

        blocks = create_block_mask(kept, None, None, queries, keys, device="cuda", _compile=True)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            output = _compiled_flex()(q, k, v, block_mask=blocks, enable_gqa=True)
            return output.transpose(1, 2)

        return attend

    return prepare


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def _aten_varlen(mask: Mask) -> Callable[[int, int], Attention]:
    assert mask.window is not None
    options: dict[str, Any] = {"window_size": (mask.window - 1, 0)}
    if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters:
        options["enable_gqa"] = True

    def prepare(queries: int, keys: int) -> Attention:
        ends = torch.tensor([0, keys], dtype=torch.int32, device="cuda")

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            output = varlen.varlen_attn(q[0], k[0], v[0], ends, ends, keys, keys, **options)
            assert isinstance(output, Tensor)
            return output[None]

        return attend

    return prepare


def _has_fa4() -> bool:
    try:
        return importlib.util.find_spec("flash_attn.cute") is not None
    except ModuleNotFoundError:
        return False


def _fa4_dense(queries: int, keys: int) -> Attention:
    from flash_attn.cute.interface import flash_attn_func

    return lambda q, k, v: flash_attn_func(q, k, v, causal=True)[0]


def _fa4_block_sparse(mask: Mask) -> Callable[[int, int], Attention]:
    """What a user would write for FA4 by hand: lists made in advance, no checks, no log-sum-exp."""

    def prepare(queries: int, keys: int) -> Attention:
        from flash_attn.cute.interface import flash_attn_func

        from swaa.attention.api import make_call
        from swaa.attention.fa4_lists import Lists, make_lists

        made: list[Lists] = []

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if not made:
                call = make_call(q, k, v, window=mask.window, sink_tokens=mask.sink_tokens)
                made.append(make_lists(call))
            options = {"mask_mod": made[0].mask, "block_sparse_tensors": made[0].forward}
            return flash_attn_func(q, k, v, **options)[0]

        return attend

    return prepare
