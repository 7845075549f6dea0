"""A sliding layer's attention inside vLLM: paged :func:`swaa.swaa_attention`, and the cache write.

vLLM's cache of a layer is ``[blocks, kv_heads, block_size, keys | values]``; both halves are handed
on as views, nothing is copied.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from vllm.v1.attention.backend import AttentionImpl

from swaa.attention import swaa_attention
from swaa.config import LayerPlan
from swaa.integrations.vllm.metadata import SlidingMetadata


class SlidingAttention(AttentionImpl[SlidingMetadata]):
    """Attention of one plan; classes derived from it name plan, kernels and platform."""

    plan: ClassVar[LayerPlan]
    kernels: ClassVar[str]
    """Backend of :func:`swaa.swaa_attention`."""

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
        # What these arguments ask for beyond plain attention was refused before (support.py).
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.attn_type = attn_type
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Store keys and values ``[rows, kv_heads, head_size]`` at their slots."""
        keys, values = self._pages(kv_cache)
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
        """Attention of the batch's rows ``[rows, heads, head_size]`` into ``output``."""
        if attn_metadata is None:  # vLLM measures memory: there is no cache yet
            return output.zero_()
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("swaa's attention does not quantise its output")
        keys, values = self._pages(kv_cache)
        result = swaa_attention(
            query[None, : attn_metadata.num_actual_tokens],
            keys,
            values,
            window=self.plan.window,
            sink_tokens=self.plan.sink_tokens,
            full_from=attn_metadata.full_from,
            full_until=attn_metadata.full_until,
            kv_lens=attn_metadata.seq_lens,
            cu_seqlens_q=attn_metadata.query_start_loc,
            block_table=attn_metadata.block_table,
            scale=self.scale,
            backend=self.kernels,
        )
        rows = result.output.shape[1]
        output[:rows].copy_(result.output[0])
        return output

    def _pages(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        return keys, values


class CPUAttention(SlidingAttention):
    """The ``sdpa`` backend on vLLM's CPU platform."""

    kernels = "sdpa"

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
        keys[block, offset] = key[:rows][real]
        values[block, offset] = value[:rows][real]


class GPUAttention(SlidingAttention):
    """The ``triton`` backend: shapes decide every launch, so the forward pass can be captured."""

    kernels = "triton"

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
