"""Attention backends by name: ``swaa_`` and the name of the stock backend they are derived from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.sglang.attention import SlidingAttention
from swaa.integrations.wrapping import check_wrapped


def factory(stock: str) -> Callable[[Any], Any]:
    """Makes the backend of a runner (``ModelRunner``) over a stock one.

    The stock backend is made first, and its class then derived from: whatever it is, prompt rows of
    full layers stay its own.
    """

    def make(runner: Any) -> Any:
        check_wrapped("SGLang")
        backend = ATTENTION_BACKENDS[stock](runner)
        backend.__class__ = _derived(type(backend))
        backend.swaa_begin(runner, _kernels(runner), stock)
        return backend

    return make


@functools.cache
def _derived(stock: type[Any]) -> type[Any]:
    return type(f"Swaa{stock.__name__}", (SlidingAttention, stock), {})


def _kernels(runner: Any) -> str:
    """Backend of :func:`swaa.swaa_attention` for sliding rows."""
    if str(runner.device).split(":")[0] != "cuda":
        return "sdpa"
    size = runner.model_config.head_dim
    if size % 8 or not 16 <= size <= 256:
        raise UnsupportedError(
            f"swaa: heads of {size} channels; swaa's kernels take multiples of 8 from 16 to 256"
        )
    return "triton"
