"""Per-batch numbers of a sliding layer: where each request's full rows begin and end.

The prompt lengths come from the scheduler (``CommonAttentionMetadata.rswa_prefix_lens``), so one
batch may mix prompts, chunks of prompts, decoding and verification: each row's position decides
what it sees. Nothing is read on the host. The numbers are in buffers that never move, so a
captured CUDA graph reads the values of the batch that replays it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder

from swaa.config import LayerPlan
from swaa.integrations.chunks import Chunks, Layout, lay_out, place
from swaa.integrations.vllm import selected
from swaa.integrations.vllm.selected import Selected


@dataclass
class SlidingMetadata:
    """The numbers of one forward pass for a sliding layer.

    Attributes:
        num_actual_tokens: query rows, padding of captured graphs included.
        max_query_len: most query rows of a request.
        max_seq_len: most keys of a request.
        query_start_loc: int32 ``[requests + 1]``, offsets of the requests' rows.
        seq_lens: int32 ``[requests]``, keys that exist.
        block_table: int32 ``[requests, blocks]``.
        slot_mapping: int64 ``[rows]``, where each row's key is stored.
        full_from: int32 ``[requests]``, rows from this position on see everything, or None.
        full_until: int32 ``[requests]``, the end of those rows, or None: no end.
        chunks: the last requests, if their keys are gathered, or None.
        selected: the requests with prompt rows, if those are selected, or None.
        prompt_lengths: int32 ``[requests]``, if rows choose what they read, or None.
        new_from: int32 ``[requests]``, position of each request's first new key, likewise.
    """

    num_actual_tokens: int
    max_query_len: int
    max_seq_len: int
    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    full_from: Tensor | None
    full_until: Tensor | None
    chunks: Chunks | None = None
    selected: Selected | None = None
    prompt_lengths: Tensor | None = None
    new_from: Tensor | None = None


class SlidingMetadataBuilder(AttentionMetadataBuilder[SlidingMetadata]):
    """Makes :class:`SlidingMetadata` for the layers of one plan, with the V1 or V2 model runner."""

    # Decode and verification batches replay exactly: our kernels take their grid from shapes and
    # read every length on the device. Mixed batches are not declared until tried on a GPU.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH
    plan: ClassVar[LayerPlan]
    min_rows: int
    """Fewest query rows of a request for which its keys are gathered."""
    prompt_lengths: Any = None
    """Prompt lengths by the V2 runner's request index, on the host: int32 ``[requests]``."""
    made: ClassVar[tuple[Any, SlidingMetadata] | None] = None
    """The last batch that a builder of this plan was handed, and its numbers."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        requests = max(
            vllm_config.scheduler_config.max_num_seqs,
            vllm_config.compilation_config.max_cudagraph_capture_size or 0,
        )
        # Zero makes every row full, which suits a warm-up batch: it has no prompts.
        self._full_from, self._full_until, self._new_from = (
            torch.zeros(requests, dtype=torch.int32, device=device) for _ in range(3)
        )
        self._max_keys = most_gathered(vllm_config, self.plan)
        # Where drafts are verified, the host knows only an upper bound of a request's length.
        speculative = vllm_config.speculative_config
        if speculative is not None:
            self.min_rows = max(self.min_rows, speculative.num_speculative_tokens + 2)
        # The V1 runner then puts decoding requests before chunks, as V2 always does.
        self._init_reorder_batch_threshold(1)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> SlidingMetadata:
        """The numbers of one batch.

        Layers of one group that differ only in their number of KV heads have builders of their own,
        which vLLM hands the same object one after another: the first makes the numbers for all.
        """
        own = type(self)
        if own.made is None or own.made[0] is not common_attn_metadata:
            own.made = common_attn_metadata, self._numbers(common_attn_metadata)
        return own.made[1]

    def _numbers(self, batch: Any) -> SlidingMetadata:
        staged = self.plan.needs_prompt_length
        if staged:
            self._stage(batch.rswa_prefix_lens)
        requests = batch.num_reqs
        chooses = self.plan.decode_keys > 0
        if chooses:
            self._place_new(batch)
        return SlidingMetadata(
            num_actual_tokens=batch.num_actual_tokens,
            max_query_len=batch.max_query_len,
            max_seq_len=batch.max_seq_len,
            query_start_loc=batch.query_start_loc[: requests + 1],
            seq_lens=batch.seq_lens[:requests],
            block_table=batch.block_table_tensor[:requests],
            slot_mapping=batch.slot_mapping,
            full_from=self._full_from[:requests] if staged else None,
            full_until=self._full_until[:requests]
            if staged and not self.plan.full_decode
            else None,
            chunks=None if self.plan.selected_keys else self._chunks(batch),
            selected=self._selected(batch) if self.plan.selected_keys else None,
            prompt_lengths=self._full_until[:requests] if chooses else None,
            new_from=self._new_from[:requests] if chooses else None,
        )

    def _selected(self, batch: Any) -> Selected | None:
        """The requests with prompt rows, if any, from lengths that the host already knows."""
        lengths, prompts = batch.seq_lens_cpu_upper_bound, self._prompt_lengths(batch)
        if lengths is None or prompts is None or len(prompts) < batch.num_reqs:
            return None  # a warm-up or a padded batch
        offsets = batch.query_start_loc_cpu[: batch.num_reqs + 1].tolist()
        lengths = lengths[: batch.num_reqs].tolist()
        rows = selected.prompt_rows(self.plan, offsets, lengths, prompts[: batch.num_reqs])
        if not rows:
            return None
        page = self.kv_cache_spec.block_size
        return selected.place(rows, offsets, batch.block_table_tensor, page)

    def _chunks(self, batch: Any) -> Chunks | None:
        """Long chunks of prompts, if any, from lengths that the host already knows."""
        lengths = batch.seq_lens_cpu_upper_bound
        if batch.max_query_len < self.min_rows or lengths is None:
            return None
        prompts = None
        if self.plan.needs_prompt_length:
            prompts = self._prompt_lengths(batch)
            if prompts is None or len(prompts) < batch.num_reqs:  # a warm-up or a padded batch
                return None
        layout: Layout | None = lay_out(
            self.plan,
            batch.query_start_loc_cpu[: batch.num_reqs + 1].tolist(),
            lengths[: batch.num_reqs].tolist(),
            prompts,
            min_rows=self.min_rows,
            max_keys=self._max_keys,
        )
        if layout is None:
            return None
        page = self.kv_cache_spec.block_size
        return place(layout, batch.block_table_tensor, self.plan.sink_tokens, page)

    def _prompt_lengths(self, batch: Any) -> list[int] | None:
        known = batch.rswa_prefix_lens
        if known is None:
            return None
        if known.device.type == "cpu":
            return known.tolist()
        # The V2 runner's are on the device; reading them would wait for it.
        if self.prompt_lengths is None or batch.req_idx is None:
            return None
        return self.prompt_lengths[batch.req_idx].tolist()

    def _place_new(self, batch: Any) -> None:
        requests = batch.num_reqs
        rows = batch.query_start_loc[: requests + 1].diff()
        torch.sub(batch.seq_lens[:requests], rows, out=self._new_from[:requests])

    def _stage(self, prompt_lengths: Tensor | None) -> None:
        if prompt_lengths is None:
            # The V2 runner has none for warm-up and capture, whose output is not used.
            if self.vllm_config.use_v2_model_runner:
                return
            raise RuntimeError(
                "vLLM's model runner passed no prompt lengths: full decode and dense tail cannot be"
                " told from the prompt; this vLLM is not supported"
            )
        count = prompt_lengths.shape[0]
        until = self._full_until[:count]
        until.copy_(prompt_lengths, non_blocking=True)
        torch.sub(until, self.plan.dense_tail, out=self._full_from[:count])
        self._full_from[:count].clamp_(min=0)


def most_gathered(vllm_config: Any, plan: LayerPlan) -> int:
    """Most keys that one forward pass gathers: enough for any one chunk, or for a whole request."""
    if plan.selected_keys:
        return vllm_config.model_config.max_model_len
    rows = vllm_config.scheduler_config.max_num_batched_tokens
    longest = vllm_config.model_config.max_model_len
    return 2 * rows + min((plan.window or longest) + plan.sink_tokens, longest)
