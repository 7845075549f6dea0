"""`lazy_ratio`, `far_attention`, `head_attention`: attention to sinks and a window, and beyond.

A lazy layer loses little when it slides (LightTransfer, arXiv 2410.13846, section 3). Its ratio is
a mean over heads, which hides a single head that looks far, so `far_attention` uses the head that
looks farthest; `head_attention` tells KV heads apart. Each is measured in one pass of full
attention, from two log-sum-exps of the last queries' scores; keys come in blocks, so that no matrix
of all queries by all keys is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from swaa.adaptation import adapt, restore
from swaa.attention.call import AttentionCall
from swaa.config import LayerPlan, SWAAConfig
from swaa.integrations.transformers.attention import Backends, LayerAttention, attach, attached
from swaa.integrations.transformers.support import find_layers
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
    model: Any = loaded.model
    totals: dict[int, list[float]] = {}
    with (
        _measuring(loaded, window, sink_tokens, queries, backend) as meters,
        torch.inference_mode(),
    ):
        for sample in samples:
            ids = torch.tensor([sample.prompt], device=model.device)
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
            for layer, meter in meters.items():
                totals.setdefault(layer, []).append(float(meter.shares.pop().mean()))
    return {layer: sum(values) / len(values) for layer, values in totals.items()}


def far_attention(
    loaded: LoadedModel,
    samples: Sequence[TeacherForced],
    *,
    window: int,
    sink_tokens: int,
    backend: str = "auto",
) -> dict[int, float]:
    """The share of attention beyond sinks and window, of the head that looks farthest.

    Args:
        loaded: model and tokenizer; not adapted.
        samples: read one at a time, with their answers: the measured rows are those of the answer
            and the :data:`LAST_QUERIES` before it.
        window: keys before a row that count as recent, itself included.
        sink_tokens: first tokens that count.
        backend: attention backend of the pass.

    Returns:
        By layer, 0 to 1: the largest of the heads' means over samples and rows. Leave
        layers with high values full.
    """
    model: Any = loaded.model
    totals: dict[int, Tensor] = {}
    with _measuring(loaded, window, sink_tokens, 0, backend) as meters, torch.inference_mode():
        for sample in samples:
            for meter in meters.values():
                meter.queries = LAST_QUERIES + len(sample.answer)
            ids = torch.tensor([sample.prompt + sample.answer], device=model.device)
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
            for layer, meter in meters.items():
                near = meter.shares.pop().mean(-1)[0]
                totals[layer] = totals.get(layer, torch.zeros_like(near)) + (1 - near)
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

    Args:
        loaded: model and tokenizer; not adapted.
        samples: read one at a time, with their answers: the measured rows are those that predict
            the answer's tokens, and the last one.
        window: keys before a row that count as recent, itself included.
        sink_tokens: first tokens that count.
        backend: attention backend of the pass.

    Returns:
        By layer and KV head, 0 to 1: the mean over rows, then samples, the largest of the query
        heads that share the KV head. Let heads with high values keep every key.
    """
    model: Any = loaded.model
    totals: dict[int, Tensor] = {}
    with _measuring(loaded, window, sink_tokens, 0, backend) as meters, torch.inference_mode():
        for sample in samples:
            for meter in meters.values():
                meter.queries = 1 + len(sample.answer)
            ids = torch.tensor([sample.prompt + sample.answer], device=model.device)
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
            for layer, meter in meters.items():
                far = 1 - meter.shares.pop().mean(-1)[0]
                by_kv_head = far.view(meter.kv_heads, -1)
                totals[layer] = totals.get(layer, torch.zeros_like(by_kv_head)) + by_kv_head
    return {
        (layer, head): share / len(samples)
        for layer, total in totals.items()
        for head, share in enumerate(total.amax(1).tolist())
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
    """Serves a layer's calls like its backends, and records the shares of each."""

    window: int = 0
    sink_tokens: int = 0
    queries: int = 0
    kv_heads: int = 0
    shares: list[Tensor] = field(default_factory=list)

    def run(self, call: AttentionCall) -> Tensor:
        self.kv_heads = call.k.shape[2]
        self.shares.append(
            lazy_shares(
                call.q,
                call.k,
                window=self.window,
                sink_tokens=self.sink_tokens,
                scale=call.scale,
                queries=self.queries,
            )
        )
        return super().run(call)


@contextmanager
def _measuring(
    loaded: LoadedModel, window: int, sink_tokens: int, queries: int, backend: str
) -> Iterator[dict[int, _Meter]]:
    """Full attention whose layers are measured; the model is restored after the block."""
    adapt(loaded.model, SWAAConfig(window=1), backend=backend, trial=False, quiet=True)
    meters: dict[int, _Meter] = {}
    try:
        for layer, module in find_layers(loaded.model).full.items():
            own = attached(module).backends
            meters[layer] = _Meter(
                own.requested,
                own.decode,
                own.traced,
                window=window,
                sink_tokens=sink_tokens,
                queries=queries,
            )
            attach(module, LayerAttention(LayerPlan(window=None), meters[layer]))
        yield meters
    finally:
        restore(loaded.model)
