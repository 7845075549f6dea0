"""Attention alone, at the sizes of a run: what the limit of a run is computed from.

Amdahl's law: when everything except attention takes ``T0``, no kernel makes a run faster than
``(T0 + stock attention) / (T0 + our attention)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from swaa.attention.api import make_call
from swaa.attention.call import AttentionCall
from swaa.attention.pages import page_statistics
from swaa.benchmark.generate.run import kind_of
from swaa.benchmark.generate.timing import time_calls
from swaa.benchmark.timing import time_graph

COLD_BYTES = 512 << 20
"""Bytes that rotating inputs must exceed, so that no cache holds them all."""

Run = Callable[[AttentionCall], Tensor]
Row = Mapping[str, Any]


@torch.inference_mode()
def attention_seconds(
    run: Run, calls: Mapping[tuple[Any, ...], int], *, dtype: torch.dtype, device: torch.device
) -> float:
    """Seconds of all calls of a pass, each kind timed alone on random numbers.

    Args:
        run: serves a call.
        calls: how many there were of each kind, as counted by :class:`Recorder`.
        dtype: of q, k and v.
        device: where to run.
    """
    return sum(count * _alone(run, kind, dtype, device) for kind, count in calls.items())


def _alone(run: Run, kind: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> float:
    decoding = kind[1] == 1
    if not decoding or device.type == "cpu":
        call = random_call(kind, dtype, device)
        return time_calls(lambda: run(call))
    batch, _, _, head_dim, keys, kv_heads, *_ = kind
    bytes_each = 2 * batch * keys * kv_heads * head_dim * dtype.itemsize
    count = max(2, math.ceil(COLD_BYTES / bytes_each))
    copies = [random_call(kind, dtype, device) for _ in range(count)]
    return time_graph([lambda one=one: run(one) for one in copies], seconds=0.1).p50


def random_call(kind: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> AttentionCall:
    """A call of a kind, with the layout that a model's layers use.

    A decoding row sees every slot of its cache, as at the end of an answer.
    """
    batch, rows, heads, head_dim, keys, kv_heads, *numbers = kind
    window, sinks, selected, pages, q_start, full_from, full_until = numbers

    def tensor(tokens: int, heads: int) -> Tensor:
        made = torch.randn((batch, heads, tokens, head_dim), dtype=dtype, device=device)
        return made.transpose(1, 2)

    filled = None
    if q_start is None:
        filled = torch.full((batch,), keys, dtype=torch.int32, device=device)
        q_start = filled - rows
    k = tensor(keys, kv_heads)
    call = make_call(
        tensor(rows, heads),
        k,
        tensor(keys, kv_heads),
        window=window,
        sink_tokens=sinks,
        full_from=full_from,
        full_until=full_until,
        q_start=q_start,
        kv_lens=filled,
        selected_keys=selected,
        decode_keys=pages,
        page_statistics=page_statistics(k) if pages else None,
    )
    assert kind_of(call) == kind
    return call


def limits(row: Row, nothing: Row, stock: Row) -> dict[str, Any]:
    """Speed against stock, the limit set by Amdahl's law, and how much of it is reached."""
    if row["refused"] or nothing["refused"] or stock["refused"]:
        return {}
    found: dict[str, Any] = {}
    for name, timed, alone in (
        ("first_token", "first_token_s", "attention_s"),
        ("per_token", "per_token_s", "attention_step_s"),
    ):
        rest = nothing[timed]["p50"]
        speedup = stock[timed]["p50"] / row[timed]["p50"]
        limit = (rest + stock[alone]) / (rest + row[alone])
        found |= {
            f"{name}_speedup": speedup,
            f"{name}_limit": limit,
            f"{name}_of_limit": speedup / limit,
        }
    return found
