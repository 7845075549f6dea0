"""Compile the kernels for long prompts while the engine starts, not at the first long prompt.

vLLM warms up on batches without a cache and captures graphs of decoding; neither runs the kernels
that read gathered keys. So each kind of sliding layer computes a few made-up batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from swaa.integrations.vllm.metadata import SlidingMetadataBuilder


def warm_up(groups: list[Any], layers: dict[str, Any], longest: int) -> None:
    """Run one layer of each group; the cache is read, never written.

    Args:
        groups: vLLM's attention groups.
        layers: attention layers by name.
        longest: most tokens of a request.
    """
    for group in groups:
        builder = group.metadata_builders[0]
        if isinstance(builder, SlidingMetadataBuilder):
            layer = layers[group.layer_names[0]]
            for batch in _batches(builder, layer.kv_cache.device, longest):
                _answer(layer, builder, batch)


def _batches(
    builder: SlidingMetadataBuilder, device: torch.device, longest: int
) -> Iterator[SimpleNamespace]:
    """Batches in vLLM's form: a chunk far into a prompt, one at its start, and a short last one."""
    plan, rows = builder.plan, 2 * builder.min_rows
    far = (plan.window or 0) + plan.sink_tokens + 2 * rows
    page = builder.kv_cache_spec.block_size
    for count, length in ((rows, far), (rows, rows), (builder.min_rows // 2, far)):
        if length > longest:
            continue
        offsets, lengths = torch.tensor([0, count]), torch.tensor([length])
        yield SimpleNamespace(
            num_reqs=1,
            num_actual_tokens=count,
            max_query_len=count,
            max_seq_len=length,
            query_start_loc=offsets.int().to(device),
            query_start_loc_cpu=offsets.int(),
            seq_lens=lengths.int().to(device),
            seq_lens_cpu_upper_bound=lengths.int(),
            # Block 0, which vLLM gives to no request.
            block_table_tensor=torch.zeros(
                1, -(-longest // page), dtype=torch.int32, device=device
            ),
            slot_mapping=torch.full((count,), -1, device=device),
            rswa_prefix_lens=lengths.int(),
            req_idx=None,
        )


def _answer(layer: Any, builder: SlidingMetadataBuilder, batch: SimpleNamespace) -> None:
    shape = (batch.num_actual_tokens, layer.num_heads, layer.head_size)
    query = torch.zeros(shape, dtype=layer.impl.dtype, device=layer.kv_cache.device)
    unused = query[:, : layer.num_kv_heads]
    layer.impl.forward(
        layer,
        query,
        unused,
        unused,
        layer.kv_cache,
        builder.build(0, batch),
        torch.empty_like(query),
    )
