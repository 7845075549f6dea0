"""`lazy_ratio`, `far_attention`, `head_attention`: attention to sinks and a window, and beyond.

A lazy layer loses little when it slides (LightTransfer, arXiv 2410.13846, section 3). Its ratio is
a mean over heads, which hides a single head that looks far, so `far_attention` uses the head that
looks farthest; `head_attention` tells KV heads apart. Each is measured in one pass of full
attention, from two log-sum-exps of the last queries' scores; keys come in blocks, so that no matrix
of all queries by all keys is made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from swaa.adaptation import adapt, restore
from swaa.attention.call import AttentionCall
from swaa.config import LayerPlan, SWAAConfig
from swaa.integrations.transformers.attention import Backends, LayerAttention, attach, attached
from swaa.integrations.transformers.support import find_layers, kv_heads_of
from swaa.models import LoadedModel
from swaa.selection.batches import TeacherForced
from swaa.selection.candidate import Head

LAST_QUERIES = 64
"""Last prompt rows whose attention is measured (the paper's number)."""

_BLOCK = 4096


def lazy_ratio(
    loaded: LoadedModel,
    samples: Sequence[TeacherForced],
    *,
    window: int,
    sink_tokens: int,
    queries: int = LAST_QUERIES,
    backend: str = "auto",
) -> dict[int, float]:
    """The share of attention that each layer's last prompt rows give to sinks and window.

    Args:
        loaded: model and tokenizer; not adapted.
        samples: their prompts are read, one at a time; answers are not used.
        window: keys before a row that count as recent, itself included.
        sink_tokens: first tokens that count.
        queries: last prompt rows.
        backend: attention backend of the pass.

    Returns:
        By layer, 0 to 1: the mean over samples, heads and rows. High is lazy: let the layer slide.
    """
    texts = [(sample.prompt, queries) for sample in samples]
    found = _measure(loaded, texts, window, sink_tokens, backend, torch.mean)
    return {layer: sum(map(float, shares)) / len(shares) for layer, shares in found.items()}


def far_attention(
    loaded: LoadedModel,
    samples: Sequence[TeacherForced],
    *,
    window: int,
    sink_tokens: int,
    backend: str = "auto",
) -> dict[int, float]:
    """The share of attention beyond sinks and window, of the head that looks farthest.

    The arguments are those of :func:`lazy_ratio`, but samples are read with their answers: the
    measured rows are those of the answer and the :data:`LAST_QUERIES` before it.

    Returns:
        By layer, 0 to 1: the largest of the heads' means over samples and rows. Leave
        layers with high values full.
    """
    totals = _far(loaded, samples, LAST_QUERIES, window, sink_tokens, backend)
    return {layer: float(total.max()) / len(samples) for layer, total in totals.items()}


def head_attention(
    loaded: LoadedModel,
    samples: Sequence[TeacherForced],
    *,
    window: int,
    sink_tokens: int,
    backend: str = "auto",
) -> dict[Head, float]:
    """The share of attention beyond sinks and window, of each KV head.

    The arguments are those of :func:`lazy_ratio`, but samples are read with their answers: the
    measured rows are those that predict the answer's tokens, and the last one.

    Returns:
        By layer and KV head, 0 to 1: the mean over rows, then samples, the largest of the query
        heads that share the KV head. Let heads with high values keep every key.
    """
    totals = _far(loaded, samples, 1, window, sink_tokens, backend)
    kv_heads = kv_heads_of(loaded.model, find_layers(loaded.model))
    return {
        (layer, head): share / len(samples)
        for layer, total in totals.items()
        for head, share in enumerate(total.view(kv_heads[layer], -1).amax(1).tolist())
    }


def lazy_shares(
    q: Tensor, k: Tensor, *, window: int, sink_tokens: int, scale: float, queries: int
) -> Tensor:
    """Share of each of the last queries' attention that falls on sinks and window.

    Args:
        q: ``[batch, tokens, heads, head_dim]``, causal over the keys.
        k: ``[batch, tokens, kv_heads, head_dim]``.
        window: keys before a row that count as recent, itself included.
        sink_tokens: first keys that count.
        scale: factor of the scores.
        queries: last rows to look at.

    Returns:
        float32 ``[batch, heads, queries]``, 0 to 1.
    """
    batch, tokens, kv_heads, _ = k.shape
    last = q[:, -queries:].float()
    rows = torch.arange(tokens - last.shape[1], tokens, device=q.device)[:, None]
    # Query heads next to the key head that they share: [batch, kv_heads, group, queries, dim].
    last = last.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
    near = last.new_full(last.shape[:-1], float("-inf"))
    everything = near.clone()
    for first in range(0, tokens, _BLOCK):
        keys = k[:, first : first + _BLOCK].float().permute(0, 2, 3, 1)[:, :, None]
        scores = last @ keys * scale
        columns = torch.arange(first, first + keys.shape[-1], device=q.device)[None]
        seen = columns <= rows
        kept = seen & ((columns > rows - window) | (columns < sink_tokens))
        everything = torch.logaddexp(everything, _masked_lse(scores, seen))
        near = torch.logaddexp(near, _masked_lse(scores, kept))
    return (near - everything).exp().reshape(batch, -1, last.shape[3])


def _masked_lse(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, float("-inf")).logsumexp(-1)


@dataclass
class _Meter(Backends):
    """Serves a layer's calls like its backends, and keeps the shares of the last one."""

    window: int = 0
    sink_tokens: int = 0
    queries: int = 0
    shares: Tensor = field(default_factory=lambda: torch.empty(0))

    def run(self, call: AttentionCall) -> Tensor:
        sizes = {"window": self.window, "sink_tokens": self.sink_tokens, "queries": self.queries}
        self.shares = lazy_shares(call.q, call.k, scale=call.scale, **sizes)
        return super().run(call)


def _far(
    loaded: LoadedModel,
    samples: Sequence[TeacherForced],
    before: int,
    window: int,
    sink_tokens: int,
    backend: str,
) -> dict[int, Tensor]:
    """By layer, each head's mean share beyond sinks and window, summed over samples: ``[heads]``.

    The rows are those of the answers and as many ``before`` them.
    """
    texts = [(sample.prompt + sample.answer, before + len(sample.answer)) for sample in samples]
    found = _measure(loaded, texts, window, sink_tokens, backend, lambda near: 1 - near.mean(-1))
    return {layer: functools.reduce(torch.add, shares) for layer, shares in found.items()}


def _measure(
    loaded: LoadedModel,
    texts: Sequence[tuple[tuple[int, ...], int]],
    window: int,
    sink_tokens: int,
    backend: str,
    reduce: Callable[[Tensor], Tensor],
) -> dict[int, list[Tensor]]:
    """By layer, the shares ``[heads, rows]`` of the last rows of each text, reduced.

    Attention is full in the passes; afterwards the model is as it was before.
    """
    model: Any = loaded.model
    adapt(model, SWAAConfig(window=1), backend=backend, trial=False, quiet=True)
    meters: dict[int, _Meter] = {}
    found: dict[int, list[Tensor]] = {}
    try:
        for layer, module in find_layers(model).full.items():
            own = attached(module).backends
            meters[layer] = _Meter(
                own.requested, own.decode, own.traced, window=window, sink_tokens=sink_tokens
            )
            attach(module, LayerAttention(LayerPlan(window=None), meters[layer]))
        for ids, rows in texts:
            for meter in meters.values():
                meter.queries = rows
            with torch.inference_mode():
                tokens = torch.tensor([ids], device=model.device)
                model(input_ids=tokens, use_cache=False, logits_to_keep=1)
                for layer, meter in meters.items():
                    found.setdefault(layer, []).append(reduce(meter.shares[0]))
    finally:
        restore(model)
    return found
