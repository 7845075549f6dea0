"""Attention of sliding layers in SGLang: derived from a stock backend's class, whichever that is.

Prompt rows of full layers stay the stock backend's. Other rows are :func:`swaa.swaa_attention` over
SGLang's own pools; keys are copied only where long chunks gather them. Decode batches of layers
that keep all keys are ours over the stock backends named in :data:`OURS_IN_DECODING`, whose own
kernels are slow over long contexts, and the stock backend's over others.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor

from swaa.attention import swaa_attention
from swaa.config import LayerPlan
from swaa.integrations.chunks import FullRows
from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.sglang import settings
from swaa.integrations.sglang.metadata import Batch, Pages, Run, Table, runs, stage
from swaa.integrations.sglang.prompts import PromptLengths

FULL = LayerPlan(window=None)

OURS_IN_DECODING = ("triton", "torch_native")
"""Stock backends whose generated rows that see everything are computed by our kernels."""


class SlidingAttention(AttentionBackend):
    """Becomes the first base of a class whose second base is a stock backend.

    It derives from ``AttentionBackend``, so that an instance of the stock class can become one of
    the derived class, and is made by :func:`swaa.integrations.sglang.backend.factory`.
    """

    swaa_kernels: str
    """Backend of :func:`swaa.swaa_attention`."""

    def swaa_begin(self, runner: Any, kernels: str, stock: str) -> None:
        """Take over a stock backend, by its name, that was made for a runner (``ModelRunner``)."""
        model = runner.model_config
        self.swaa_kernels = kernels
        self.swaa_min_rows = 128 if kernels == "triton" else 32
        self.swaa_plans: tuple[LayerPlan, ...] = settings.plans_of(model)
        found = settings.find(model)
        window, sinks = (found.config.window, found.config.sink_tokens) if found else (1, 0)
        assert window is not None
        self.swaa_decodes_whole = (
            found is not None
            and stock in OURS_IN_DECODING
            and any(plan.keeps_all_keys for plan in self.swaa_plans)
        )
        self.swaa_table = Table(runner, window=window, sinks=sinks, whole=self.swaa_decodes_whole)
        self.swaa_max_keys = _most_gathered(model.context_len, window + sinks)
        slides = any(not plan.keeps_all_keys for plan in self.swaa_plans)
        self.swaa_prepares_decoding = slides or self.swaa_decodes_whole
        self.swaa_prompts = runner.swaa_prompts = PromptLengths(
            self.swaa_table.slots.shape[0], self.swaa_table.slots.device
        )
        self.swaa_batch: Batch | None = None
        self.swaa_buffers: Batch | None = None
        self.swaa_runs: dict[tuple[LayerPlan, bool], list[Run]] = {}

    # Numbers of a batch -------------------------------------------------------------------------

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Prepare a pass that no graph replays."""
        super().init_forward_metadata(forward_batch)
        mode = forward_batch.forward_mode
        self.swaa_batch, self.swaa_runs = None, {}
        if mode.is_idle():
            return
        if mode.is_decode():
            if self.swaa_prepares_decoding:
                self.swaa_batch = self.swaa_table.decode(forward_batch)
            return
        if not mode.is_extend() or mode.is_target_verify() or mode.is_split_prefill():
            raise UnsupportedError(f"swaa: a batch of mode {mode.name} is not served")
        prompts, known = self.swaa_prompts.of(forward_batch)
        self.swaa_batch = self.swaa_table.extend(forward_batch, prompts, known)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int, *args: Any) -> None:
        """Make the buffers that graphs of decode batches read."""
        super().init_cuda_graph_state(max_bs, max_num_tokens, *args)
        self.swaa_buffers = self.swaa_table.buffers(max(max_bs, max_num_tokens))

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Prepare a decode batch for a graph that is captured or replayed."""
        super().init_forward_metadata_out_graph(forward_batch, in_capture=in_capture)
        if self.swaa_buffers is None:
            return  # called by a stock backend's own init_forward_metadata
        if not forward_batch.forward_mode.is_decode_or_idle():
            raise UnsupportedError("swaa: only graphs of decode batches are served")
        if self.swaa_prepares_decoding:
            self.swaa_batch = stage(self.swaa_buffers, self.swaa_table.decode(forward_batch))

    # Attention ----------------------------------------------------------------------------------

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """One generated row of each request: ``[requests, heads * head_dim]``."""
        plan = self.swaa_plans[layer.layer_id]
        whole = plan.keeps_all_keys  # every row of a decode batch is a generated token
        if whole and not self.swaa_decodes_whole:
            return super().forward_decode(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs
            )
        _refuse(kwargs)
        batch = self._batch()
        pages = self._store(k, v, layer, forward_batch, batch, save_kv_cache)
        table, lengths = pages.table, batch.lengths
        if whole:
            assert batch.whole is not None
            table, lengths = batch.whole.table, batch.whole.lengths
        keys, values = self._pools(layer)
        output = self._attend(
            *(_by_head(q, layer)[:, None], keys, values),
            *(layer, FULL if whole else plan),
            kv_lens=lengths,
            block_table=table,
        )
        return output.reshape(q.shape[0], -1)

    def forward_extend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Rows of prompts, and generated rows next to them: ``[rows, heads * head_dim]``."""
        plan = self.swaa_plans[layer.layer_id]
        if plan.full:
            return super().forward_extend(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs
            )
        _refuse(kwargs)
        batch = self._batch()
        pages = self._store(k, v, layer, forward_batch, batch, save_kv_cache)
        rows = _by_head(q, layer)
        output = torch.empty_like(rows)
        for run in self._runs_of(plan, pages, batch):
            if run.chunks is None:
                self._paged(rows, layer, batch, pages, run, output)
            else:
                self._gathered(rows, layer, pages, run, output)
        return output.reshape(q.shape[0], -1)

    def _paged(
        self, rows: Tensor, layer: Any, batch: Batch, pages: Pages, run: Run, output: Tensor
    ) -> None:
        """Attention of a run of requests, over pages."""
        plan, requests = self.swaa_plans[layer.layer_id], run.requests
        assert batch.offsets is not None
        assert batch.prompts is not None
        offsets = batch.offsets[requests.start : requests.stop + 1]
        keys, values = self._pools(layer)
        phased, prompts = plan.needs_prompt_length, batch.prompts[requests]
        output[run.rows] = self._attend(
            *(rows[None, run.rows], keys, values),
            *(layer, plan),
            full_from=(prompts - plan.dense_tail).clamp(min=0) if phased else None,
            full_until=prompts if phased and not plan.full_decode else None,
            kv_lens=batch.lengths[requests],
            cu_seqlens_q=offsets - offsets[0],
            block_table=pages.table[requests],
        )[0]

    def _gathered(self, rows: Tensor, layer: Any, pages: Pages, run: Run, output: Tensor) -> None:
        """Attention of a run of requests, over gathered keys."""
        chunks = run.chunks
        assert chunks is not None
        plan = self.swaa_plans[layer.layer_id]
        keys, values = (pool.flatten(0, 1) for pool in self._pools(layer))
        keys, values = (pool.index_select(0, chunks.slots)[None] for pool in (keys, values))
        output[run.rows] = self._attend(
            *(rows[None, run.rows], keys, values),
            *(layer, plan),
            full_from=chunks.full_from,
            full_until=chunks.full_until,
            cu_seqlens_q=chunks.cu_rows,
            cu_seqlens_k=chunks.cu_keys,
        )[0]
        for one in chunks.layout.apart:
            self._apart(rows, layer, pages, run, one, output)

    def _apart(
        self, rows: Tensor, layer: Any, pages: Pages, run: Run, one: FullRows, output: Tensor
    ) -> None:
        """Attention of the rows of one request that see everything."""
        batch, chunks = self._batch(), run.chunks
        assert chunks is not None
        start = run.rows.start - chunks.layout.row
        request = run.requests.start + one.request - chunks.layout.first
        keys, values = self._pools(layer)
        picked = slice(start + one.first, start + one.end)
        output[picked] = self._attend(
            *(rows[None, picked], keys, values),
            *(layer, FULL),
            q_start=one.position,
            kv_lens=batch.lengths[request : request + 1],
            block_table=pages.table[request : request + 1],
        )[0]

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, plan: LayerPlan, **rows: Any
    ) -> Tensor:
        """The output of :func:`swaa.swaa_attention` for rows under a plan."""
        return swaa_attention(
            *(q, k, v),
            window=plan.window,
            sink_tokens=plan.sink_tokens,
            scale=layer.scaling,
            backend=self.swaa_kernels,
            **rows,
        ).output

    def _runs_of(self, plan: LayerPlan, pages: Pages, batch: Batch) -> list[Run]:
        """The runs of a plan's layers in one pool, made once for a batch."""
        key = (plan, pages is batch.sliding)
        if key not in self.swaa_runs:
            self.swaa_runs[key] = runs(
                batch,
                plan,
                pages,
                page=self.swaa_table.page,
                min_rows=self.swaa_min_rows,
                max_keys=self.swaa_max_keys,
            )
        return self.swaa_runs[key]

    def _batch(self) -> Batch:
        if self.swaa_batch is None:
            raise RuntimeError("swaa: SGLang computes a batch that it has not prepared")
        return self.swaa_batch

    def _store(
        self, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, batch: Batch, save: bool
    ) -> Pages:
        """Store the batch's keys and values; where those of the layer lie."""
        pool = self.swaa_table.pool
        if save and k is not None:
            written = None if batch.sliding is None else batch.sliding.written
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, written), k, v)
        if batch.sliding is not None and pool.layers_mapping[layer.layer_id][1]:
            return batch.sliding
        return batch.full

    def _pools(self, layer: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, ``[pages, page_size, kv_heads, head_dim]``: views."""
        keys, values = self.swaa_table.pool.get_kv_buffer(layer.layer_id)
        page = self.swaa_table.page
        return keys.unflatten(0, (-1, page)), values.unflatten(0, (-1, page))


def _by_head(q: Tensor, layer: Any) -> Tensor:
    return q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)


def _most_gathered(longest: int, kept: int) -> int:
    """Most keys that one run gathers: enough for any one chunk, or for a whole request."""
    from sglang.srt.runtime_context import get_schedule

    chunk = get_schedule().chunked_prefill_size
    rows = chunk if chunk and chunk > 0 else longest
    return 2 * rows + min(kept, longest)


def _refuse(kwargs: dict[str, Any]) -> None:
    """Refuse arguments by which a model asks for more than plain attention."""
    strange = sorted(name for name, value in kwargs.items() if value is not None)
    if strange:
        raise UnsupportedError(
            f"swaa: the model asks attention for {', '.join(strange)}, which sliding rows do not"
            " compute"
        )
