"""A sliding layer's attention inside vLLM: paged :func:`swaa.swaa_attention`, and the cache write.

vLLM's cache of a layer is ``[blocks, kv_heads, block_size, keys | values]``; both halves are passed
on as views, without a copy. In an fp8 cache keys and values are divided by a factor of the layer's
each: that of the keys is multiplied into the scale of the scores, that of the values into the
output.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionImpl

from swaa.attention import AttentionOutput, swaa_attention
from swaa.attention.call import FP8
from swaa.attention.pages import PAGE
from swaa.attention.pages import page_statistics as describe_pages
from swaa.config import LayerPlan
from swaa.integrations.chunks import Chunks, FullRows
from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.vllm.fp8 import FP8_CACHES
from swaa.integrations.vllm.metadata import SlidingMetadata, most_gathered
from swaa.integrations.vllm.selected import PromptRows


class SlidingAttention(AttentionImpl[SlidingMetadata]):
    """Attention of one plan; derived classes set plan, kernels and platform."""

    plan: ClassVar[LayerPlan]
    kernels: ClassVar[str]
    """Backend of :func:`swaa.swaa_attention`."""
    min_rows: ClassVar[int]
    """Fewest query rows of a request for which its keys are gathered."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = "decoder",
        kv_sharing_target_layer_name: str | None = None,
    ) -> None:
        # support.py has already refused arguments that ask for more than plain attention.
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.attn_type = attn_type
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.fp8 = kv_cache_dtype in FP8_CACHES
        self.k_scale = self.v_scale = 1.0
        vllm_config = get_current_vllm_config()
        self.dtype = vllm_config.model_config.dtype
        self.most_gathered = most_gathered(vllm_config, self.plan)

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Store keys and values ``[rows, kv_heads, head_size]`` at their slots."""
        keys, values = self._pages(self._stored(kv_cache))
        self.write(layer, key, value, keys, values, slot_mapping)

    def write(
        self,
        layer: Any,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
    ) -> None:
        """Store rows into pages ``[blocks, block_size, kv_heads, head_size]``."""
        raise NotImplementedError

    def gather(self, kv_cache: Tensor, slots: Tensor) -> Tensor:
        """Keys and values ``[slots, kv_heads, 2 * head_size]`` of slots, in the model's type."""
        raise NotImplementedError

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: SlidingMetadata,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Write the attention of the batch's rows ``[rows, heads, head_size]`` to ``output``."""
        if attn_metadata is None:  # vLLM measures memory: there is no cache yet
            self._claim_memory(key)
            return output.zero_()
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("swaa's attention does not quantise its output")
        if self.fp8:  # known once weights are loaded
            self.k_scale, self.v_scale = layer._k_scale_float, layer._v_scale_float
        kv_cache = self._stored(kv_cache)
        if attn_metadata.new_from is not None:
            self._describe(kv_cache, attn_metadata)
        selected, chunks = attn_metadata.selected, attn_metadata.chunks
        if selected is not None:
            if selected.paged:
                numbers = (selected.paged, selected.paged_rows)
                self._paged(query, kv_cache, attn_metadata, output, *numbers)
            for rows, slots in zip(selected.rows, selected.slots, strict=True):
                self._selected(query, kv_cache, output, rows, slots)
            return output
        if chunks is None:
            self._paged(query, kv_cache, attn_metadata, output, None, None)
            return output
        layout = chunks.layout
        if layout.first:
            self._paged(query, kv_cache, attn_metadata, output, layout.first, layout.row)
        self._gathered(query, kv_cache, chunks, output)
        for rows in layout.apart:
            self._apart(query, kv_cache, attn_metadata, output, rows)
        return output

    def _paged(
        self,
        query: Tensor,
        kv_cache: Tensor,
        numbers: SlidingMetadata,
        output: Tensor,
        requests: int | None,
        rows: int | None,
    ) -> None:
        """Attention of the first requests of a batch (None: all), over pages."""
        keys, values = self._pages(kv_cache)
        rows = numbers.num_actual_tokens if rows is None else rows
        last = None if requests is None else requests + 1
        full_from, full_until = numbers.full_from, numbers.full_until
        result = swaa_attention(
            query[None, :rows],
            keys,
            values,
            window=self.plan.window,
            sink_tokens=self.plan.sink_tokens,
            full_from=None if full_from is None else full_from[:requests],
            full_until=None if full_until is None else full_until[:requests],
            kv_lens=numbers.seq_lens[:requests],
            cu_seqlens_q=numbers.query_start_loc[:last],
            block_table=numbers.block_table[:requests],
            scale=self.scale * self.k_scale,
            **self._choosing(kv_cache, numbers.prompt_lengths, requests),
            backend=self.kernels,
        )
        self._put(output[:rows], result)

    def _gathered(self, query: Tensor, kv_cache: Tensor, chunks: Chunks, output: Tensor) -> None:
        """Attention of the last requests of a batch, over gathered keys."""
        keys, values = self.gather(kv_cache, chunks.slots).split(self.head_size, dim=-1)
        layout = chunks.layout
        rows = slice(layout.row, layout.row + sum(layout.rows))
        result = swaa_attention(
            query[None, rows],
            keys[None],
            values[None],
            window=self.plan.window,
            sink_tokens=self.plan.sink_tokens,
            full_from=chunks.full_from,
            full_until=chunks.full_until,
            cu_seqlens_q=chunks.cu_rows,
            cu_seqlens_k=chunks.cu_keys,
            scale=self.scale * self.k_scale,
            backend=self.kernels,
        )
        self._put(output[rows], result)

    def _selected(
        self, query: Tensor, kv_cache: Tensor, output: Tensor, rows: PromptRows, slots: Tensor
    ) -> None:
        """Attention of the rows of one request, whose prompt rows are selected."""
        keys, values = self.gather(kv_cache, slots).split(self.head_size, dim=-1)
        result = swaa_attention(
            query[None, rows.first : rows.end],
            keys[None],
            values[None],
            window=self.plan.window,
            sink_tokens=self.plan.sink_tokens,
            full_from=rows.full_from,
            q_start=rows.position,
            scale=self.scale * self.k_scale,
            selected_keys=self.plan.selected_keys,
            decode_keys=self.plan.decode_keys,
            decode_from=rows.prompt if self.plan.decode_keys else None,
            backend=self.kernels,
        )
        self._put(output[rows.first : rows.end], result)

    def _apart(
        self,
        query: Tensor,
        kv_cache: Tensor,
        numbers: SlidingMetadata,
        output: Tensor,
        rows: FullRows,
    ) -> None:
        """Attention of the rows of one request that see everything."""
        keys, values = self._pages(kv_cache)
        result = swaa_attention(
            query[None, rows.first : rows.end],
            keys,
            values,
            window=None,
            q_start=rows.position,
            kv_lens=numbers.seq_lens[rows.request : rows.request + 1],
            block_table=numbers.block_table[rows.request : rows.request + 1],
            scale=self.scale * self.k_scale,
            backend=self.kernels,
        )
        self._put(output[rows.first : rows.end], result)

    def _put(self, output: Tensor, result: AttentionOutput) -> None:
        """Write a result to rows of the output."""
        if self.fp8:
            torch.mul(result.output[0], self.v_scale, out=output)
        else:
            output.copy_(result.output[0])

    def _choosing(
        self, kv_cache: Tensor, prompt_lengths: Tensor | None, requests: int | None
    ) -> dict[str, Any]:
        """Arguments for generated rows that choose pages, of the first requests (None: all)."""
        if prompt_lengths is None:
            return {}
        return {
            "decode_keys": self.plan.decode_keys,
            "decode_from": prompt_lengths[:requests],
            "page_statistics": page_statistics(kv_cache, self.dtype),
        }

    def _describe(self, kv_cache: Tensor, numbers: SlidingMetadata) -> None:
        """Write the statistics of the pages that the batch's keys completed."""
        keys, _ = self._pages(kv_cache)
        self.summarise(keys, page_statistics(kv_cache, self.dtype), numbers)

    def summarise(self, keys: Tensor, statistics: Tensor, numbers: SlidingMetadata) -> None:
        """Write statistics of pages; ``keys`` and ``statistics`` are laid out by cache blocks."""
        raise NotImplementedError

    def _claim_memory(self, key: Tensor) -> None:
        """Allocate the most that gathering needs, so that vLLM counts it."""
        shape = (self.most_gathered, self.num_kv_heads, 2 * self.head_size)
        torch.empty(shape, dtype=key.dtype, device=key.device)

    def _stored(self, kv_cache: Tensor) -> Tensor:
        """The cache in the type of what it holds: vLLM has bytes for fp8."""
        return kv_cache.view(FP8) if self.fp8 else kv_cache

    def _pages(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        return keys, values


def page_statistics(kv_cache: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The part of each block that holds the statistics of its keys, after the keys.

    Args:
        kv_cache: ``[blocks, kv_heads, block_size, keys | values]``.
        dtype: of the statistics; None: that of the keys.

    Returns:
        A view ``[blocks, block_size // 16, kv_heads, 2, head_size]``.
    """
    blocks, heads, tokens, channels = kv_cache.shape
    shape = (blocks, tokens // PAGE, heads, 2, channels // 2)
    held = kv_cache if dtype is None else kv_cache.view(dtype)
    strides = (held.stride(0), heads * channels, channels, channels // 2, 1)
    behind = held.storage_offset() + heads * tokens * held.shape[3]
    return held.as_strided(shape, strides, behind)


def to_fp8(x: Tensor, scale: float) -> Tensor:
    """Numbers divided by a factor, rounded to the nearest in fp8; the largest stands for larger."""
    most = torch.finfo(FP8).max
    return (x.float() / scale).clamp(-most, most).to(FP8)


class CPUAttention(SlidingAttention):
    """The ``sdpa`` backend on vLLM's CPU platform."""

    kernels = "sdpa"
    min_rows = 32

    def write(
        self,
        layer: Any,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
    ) -> None:
        """Store rows; negative slots are padding."""
        real = slots >= 0
        block, offset = slots[real] // keys.shape[1], slots[real] % keys.shape[1]
        rows = slots.shape[0]
        key, value = key[:rows][real], value[:rows][real]
        if self.fp8:
            key, value = to_fp8(key, layer._k_scale_float), to_fp8(value, layer._v_scale_float)
        keys[block, offset] = key
        values[block, offset] = value

    def summarise(self, keys: Tensor, statistics: Tensor, numbers: SlidingMetadata) -> None:
        """Write statistics request by request."""
        size = keys.shape[1]
        before, after = numbers.new_from, numbers.seq_lens
        assert before is not None
        for n, (first, end) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
            for page in range(first // PAGE, end // PAGE):
                block = int(numbers.block_table[n, page * PAGE // size])
                slots = slice(page * PAGE % size, page * PAGE % size + PAGE)
                described = describe_pages(keys[block : block + 1, slots].to(self.dtype))
                statistics[block, page % (size // PAGE)] = described[0, 0]

    def gather(self, kv_cache: Tensor, slots: Tensor) -> Tensor:
        """Gather by indexing."""
        page = kv_cache.shape[2]
        return kv_cache.transpose(1, 2)[slots // page, slots % page].to(self.dtype)


class GPUAttention(SlidingAttention):
    """The ``triton`` backend: launches depend only on shapes, so graphs can capture the pass."""

    kernels = "triton"
    min_rows = 128

    def __init__(self, num_heads: int, head_size: int, *args: Any, **kwargs: Any) -> None:
        if head_size % 8 or not 16 <= head_size <= 256:
            raise UnsupportedError(
                f"swaa: heads of {head_size} channels; swaa's kernels take multiples of 8 from 16"
                " to 256"
            )
        super().__init__(num_heads, head_size, *args, **kwargs)

    def write(
        self,
        layer: Any,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
    ) -> None:
        """Store rows by vLLM's own kernel; negative slots are padding."""
        from vllm.v1.attention.ops.triton_reshape_and_cache_flash import (
            triton_reshape_and_cache_flash,
        )

        triton_reshape_and_cache_flash(
            key,
            value,
            keys,
            values,
            slots,
            self.kv_cache_dtype,
            layer._k_scale,
            layer._v_scale,
        )

    def summarise(self, keys: Tensor, statistics: Tensor, numbers: SlidingMetadata) -> None:
        """Write statistics by our own kernel."""
        from swaa.attention.triton.pages import summarise

        assert numbers.new_from is not None
        summarise(
            keys,
            statistics,
            first=numbers.new_from,
            end=numbers.seq_lens,
            new=numbers.max_query_len,
            block_table=numbers.block_table,
        )

    def gather(self, kv_cache: Tensor, slots: Tensor) -> Tensor:
        """Gather by our own kernel."""
        from swaa.attention.triton.gather import gather

        return gather(kv_cache, slots, self.dtype)
