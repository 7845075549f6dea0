"""A cache that frees what no later row sees: sliding layers keep their sinks and their window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from swaa.attention.page_cache import fill_statistics
from swaa.attention.pages import PAGE
from swaa.config import LayerPlan
from swaa.integrations.transformers.head_cache import HeadwiseLayer, parts_of
from swaa.integrations.transformers.mask import RowInfo, last_rows


class RollingLayer(DynamicLayer):
    """Keys and values of one layer that slides in decoding: first sinks, then the window.

    It holds at most ``sink_tokens + window`` slots per sequence. Other slots are freed while
    prefill still runs, or, with a dense tail, once the last prompt row is computed. What it keeps
    is copied, so that the prompt's tensors can be freed. A sequence shorter than the others (left
    padding) is right-aligned: slot ``max(0, start - evicted)`` is its first real token.

    Attributes:
        evicted: slots dropped so far; the places of kept slots are shifted by as many.
        cumulative_length: tokens seen, padding included.
    """

    is_croppable = True  # like sliding layers of Transformers: while the past is recorded

    def __init__(self, plan: LayerPlan) -> None:
        super().__init__()
        assert plan.window is not None
        self.sink_tokens = plan.sink_tokens
        self.capacity = plan.sink_tokens + plan.window
        self.holds_prompt = plan.dense_tail > 0
        self.cumulative_length = 0
        self.evicted = 0
        self.record_past = False
        self._starts: Tensor | None = None
        self._prompt_done = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append, return everything for this pass's attention, and free what may be freed.

        Args:
            key_states: ``[batch, kv_heads, tokens, head_dim]``.
            value_states: as ``key_states``.
            args: not used.
            kwargs: not used.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows = last_rows()
        if rows is None or rows.q_offset != self.cumulative_length or rows.batch != len(key_states):
            raise ValueError(
                "a cache of swaa serves adapted models only, and no compiled code: call"
                " swaa.adapt(model), and do not compile what uses this cache"
            )
        if rows.phase.full and self.evicted:
            raise ValueError(
                "this cache has freed keys that full_attention() needs: pass the whole conversation"
                " without a cache"
            )
        self._starts = rows.starts
        keys, values = self._appended(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        self._prompt_done = not self.holds_prompt or self._past_prompt(rows)
        if self.record_past or rows.phase.full:  # a later crop or a sliding row trims
            self.keys, self.values = keys, values
        else:
            self._trim(keys, values)
        return keys, values

    def _stored(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _appended(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """The stored tokens followed by the new ones."""
        if self.cumulative_length:
            keys, values = self._stored()
            return joined([keys, key_states]), joined([values, value_states])
        if self._trims and key_states.shape[-2] > self.capacity:
            return key_states, value_states  # _trim copies what stays
        return joined([key_states]), joined([value_states])

    @property
    def _trims(self) -> bool:
        return not (self.holds_prompt or self.record_past)

    def _past_prompt(self, rows: RowInfo) -> bool:
        end = rows.prompt_end
        return end is not None and self.cumulative_length >= end

    def _trim(self, keys: Tensor, values: Tensor) -> None:
        surplus = keys.shape[-2] - self.capacity
        if surplus <= 0 or not self._prompt_done:
            self.keys, self.values = keys, values
            return
        self.keys, self.values = (self._kept(x, surplus) for x in (keys, values))
        self.evicted += surplus

    def _kept(self, x: Tensor, surplus: int) -> Tensor:
        """Sinks and window of ``[batch, kv_heads, slots, head_dim]``, as a copy."""
        sinks = self.sink_tokens
        if self._starts is None:
            return joined([x[:, :, :sinks], x[:, :, surplus + sinks :]])
        first = (self._starts.to(x.device) - self.evicted).clamp(min=0)[:, None].long()
        slots = torch.arange(self.capacity, device=x.device)[None]
        long_enough = first <= surplus
        kept = torch.where((slots < sinks) & long_enough, first + slots, slots + surplus)
        return x.gather(2, kept[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    def activate_past_recording(self) -> None:
        """Keep everything until the next :meth:`crop` (assisted decoding)."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, given as a negative number, then free what may be freed."""
        count = abs(int(tokens_to_remove))  # a tensor in some versions
        if not self.is_initialized or (not count and not self.record_past):
            return
        keys, values = self._stored()
        kept = keys.shape[-2] - count
        if self.evicted and not self.record_past:
            raise ValueError(
                "this cache has freed keys and cannot be cropped: record the past from the start,"
                " or keep every key with full_decode=True"
            )
        self.cumulative_length -= count
        self._trim(keys[:, :, :kept], values[:, :, :kept])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Slots that the next pass will see, and slots freed before them."""
        return self.cumulative_length - self.evicted + query_length, self.evicted

    def get_seq_length(self) -> int:
        """Tokens seen, including those whose keys were freed."""
        return self.cumulative_length


class PagedLayer(DynamicLayer):
    """Keys and values of one layer whose generated rows choose what they read, by pages.

    Attributes:
        statistics: of the pages, ``[batch, pages, kv_heads, 2, head_dim]``, with room for more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.statistics: Tensor | None = None
        self._described = 0  # slots whose complete pages have statistics

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append; once rows may choose, write the statistics of complete pages."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        rows = last_rows()
        if rows is not None and rows.may_choose:
            self._describe(keys.transpose(1, 2), rows)
        return keys, values

    def _describe(self, keys: Tensor, rows: RowInfo) -> None:
        slots = keys.shape[1]
        self.statistics = roomy(self.statistics, keys)
        fill_statistics(
            keys,
            self.statistics,
            first=self._described,
            end=slots,
            new=slots - self._described,
            kv_start=0 if rows.starts is None else rows.starts.to(keys.device),
        )
        self._described = slots

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Remove the last tokens; later tokens rewrite the statistics of pages they complete."""
        super().crop(*args, **kwargs)
        self._described = min(self._described, self.get_seq_length())

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Give each beam the keys of the beam it continues."""
        super().reorder_cache(beam_idx)
        if self.statistics is not None:
            self.statistics = self.statistics.index_select(0, beam_idx.to(self.statistics.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence."""
        super().batch_repeat_interleave(repeats)
        self._forget()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the sequences."""
        super().batch_select_indices(indices)
        self._forget()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._forget()

    def _forget(self) -> None:
        self.statistics, self._described = None, 0


def roomy(statistics: Tensor | None, keys: Tensor) -> Tensor:
    """Statistics with room for the pages of ``keys`` ``[batch, slots, kv_heads, head_dim]``.

    The room doubles when it is used up, so that adding tokens one by one copies little.
    """
    pages = keys.shape[1] // PAGE
    if statistics is not None and statistics.shape[1] >= pages:
        return statistics
    room = pages + 64 if statistics is None else 2 * pages
    made = keys.new_zeros(keys.shape[0], room, keys.shape[2], 2, keys.shape[3])
    if statistics is not None:
        made[:, : statistics.shape[1]] = statistics
    return made


class SWAACache(DynamicCache):
    """The model's own dynamic cache, with a :class:`RollingLayer` where keys may be freed.

    ``generate`` of an adapted model makes one itself.

    Args:
        config: the model's configuration.
        plans: the plan of each layer.
    """

    def __init__(self, config: PreTrainedConfig, plans: Sequence[LayerPlan]) -> None:
        super().__init__(config=config)
        self._made_of = (config, tuple(plans))
        plans = plans[: len(self.layers)]  # self-speculation lowers the model's depth for a while
        for index, (layer, plan) in enumerate(zip(self.layers, plans, strict=True)):
            if type(layer) is not DynamicLayer:
                continue
            if plan.decode_heads:
                parts = [_dynamic(part) for part in plan.part_plans()]
                self.layers[index] = HeadwiseLayer(plan, parts)
            else:
                self.layers[index] = _dynamic(plan)
        self._bytes = [0] * len(self.layers)
        self.peak_kv_bytes = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; see :meth:`transformers.Cache.update`."""
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer, rows = self.layers[layer_idx], last_rows()
        statistics = getattr(layer, "statistics", None)
        parts = layer.hand_over() if isinstance(layer, HeadwiseLayer) else None
        if rows is not None and statistics is not None:
            rows.statistics[layer_idx] = statistics
        if rows is not None and parts is not None:
            rows.parts[layer_idx] = parts
        held = sum(self._bytes) - self._bytes[layer_idx]
        handed = sum(x.nbytes for pair in parts or ((keys, values),) for x in pair)
        handed += 0 if statistics is None else statistics.nbytes
        self.peak_kv_bytes = max(self.peak_kv_bytes, held + handed)
        self._bytes[layer_idx] = layer_bytes(layer)
        return keys, values

    def kv_bytes(self) -> int:
        """Bytes of keys and values held now."""
        return sum(layer_bytes(layer) for layer in self.layers)

    def reset(self) -> None:
        """Forget everything by making new layers: resetting a layer differs between versions."""
        recording = any(getattr(layer, "record_past", False) for layer in self.layers)
        fresh = SWAACache(*self._made_of)
        if recording:
            fresh.activate_past_recording()
        self.layers, self._bytes = fresh.layers, fresh._bytes
        self.peak_kv_bytes = 0

    def has_evicted(self) -> bool:
        """Whether keys that a full row would need were freed."""
        parts = (part for layer in self.layers for part in parts_of(layer))
        return any(isinstance(part, RollingLayer) and part.evicted for part in parts)


def _dynamic(plan: LayerPlan) -> DynamicLayer:
    """An empty cache layer for heads that do the same."""
    if not plan.keeps_all_keys:
        return RollingLayer(plan)
    return PagedLayer() if plan.decode_keys else DynamicLayer()


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tokens concatenated, as a copy; ``[batch, kv_heads, tokens, head_dim]``.

    In memory tokens come before heads, as projections write them, so whole rows are copied.
    """
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)


def layer_bytes(layer: Any) -> int:
    """Bytes that a cache layer holds, statistics included; 0 for layers that hold none."""
    if isinstance(layer, HeadwiseLayer):
        return sum(layer_bytes(part) for part in layer.parts)
    statistics = getattr(layer, "statistics", None)
    reserved = getattr(layer, "reserved", None)  # it contains what is stored
    tensors = reserved or (getattr(layer, "keys", None), getattr(layer, "values", None))
    return sum(x.nbytes for x in (*tensors, statistics) if isinstance(x, Tensor))
