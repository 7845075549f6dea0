"""A cache allocated once: a prompt is written chunk by chunk, then decoding runs in a graph.

While the prompt is computed, layers work as in :mod:`~swaa.integrations.transformers.cache`, but
nothing grows by copying. :meth:`StaticSWAACache.start_decoding` then turns every layer that slides
in decoding into a ring: the sinks, and ``window`` slots of which the oldest is overwritten. Keys
carry their positions (RoPE), so their order does not matter, and a key that has left the window is
no longer in the ring. So a decoding row sees every filled slot, in every layer. The next slot and
the number of filled slots are tensors, advanced on the device once per token and shared by all
layers of a kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from swaa.attention.mask import Position
from swaa.attention.page_cache import fill_statistics
from swaa.attention.pages import PAGE
from swaa.config import LayerPlan
from swaa.integrations.transformers.cache import PagedLayer, RollingLayer, SWAACache, layer_bytes
from swaa.integrations.transformers.head_cache import HeadwiseLayer, parts_of
from swaa.integrations.transformers.mask import RowInfo, last_rows
from swaa.phase import Phase

Kind = tuple[int, int] | LayerPlan | None
"""Kind of a layer in decoding: a ring's sinks and window, a plan that chooses, or None (full)."""


class Filled:
    """Which slots of one kind of layer are filled, and which one the next token takes.

    Attributes:
        slot: the next token's slot, int64 ``[1]``, or ``[batch]`` where padded sequences differ.
        kv_lens: int32 ``[batch]``, slots filled once the next token is stored.
        q_start: int32 ``[batch]``, the next token's place among them: the last.
        kv_start: int32 ``[batch]``, slots of left padding; None without padding.
    """

    def __init__(self, slot: Tensor, filled: Tensor, *, kv_start: Tensor | None = None) -> None:
        self.slot = slot
        self.kv_lens = (filled + 1).to(torch.int32)
        self.q_start = self.kv_lens - 1
        self.kv_start = kv_start

    def write(self, memory: Tensor, new: Tensor) -> None:
        """Store one token per sequence, ``[batch, kv_heads, 1, head_dim]``."""
        if len(self.slot) == 1:
            memory.index_copy_(2, self.slot, new)
        else:
            memory[torch.arange(len(memory), device=memory.device), :, self.slot] = new[:, :, 0]

    def advance(self) -> None:
        """Move on by one token."""
        self.slot += 1
        self.kv_lens += 1
        self.q_start += 1

    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`swaa.swaa_attention`: the row sees every filled slot."""
        return {
            "window": None,
            "q_start": self.q_start,
            "kv_start": self.kv_start,
            "kv_lens": self.kv_lens,
        }


class FilledPages(Filled):
    """Like :class:`Filled`, for layers whose rows choose what they read.

    Args:
        plan: the plan of these layers.
        slot: as in :class:`Filled`.
        filled: likewise.
        kv_start: likewise.
    """

    def __init__(
        self, plan: LayerPlan, slot: Tensor, filled: Tensor, *, kv_start: Tensor | None = None
    ) -> None:
        super().__init__(slot, filled, kv_start=kv_start)
        self.plan = plan

    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`swaa.swaa_attention`: every row is full, and chooses."""
        return {
            **super().arguments(),
            "window": self.plan.window or self.plan.decode_window,
            "sink_tokens": self.plan.sink_tokens,
            "full_from": 0,
            "decode_keys": self.plan.decode_keys,
        }


class FilledRing(Filled):
    """Like :class:`Filled`, for sinks and a ring after them; padding is not stored."""

    def __init__(self, seen: Tensor, *, batch: int, sink_tokens: int, window: int) -> None:
        self.sink_tokens = sink_tokens
        self.capacity = sink_tokens + window
        slot = torch.where(seen < self.capacity, seen, sink_tokens)
        super().__init__(slot, seen.clamp(max=self.capacity - 1).expand(batch))

    def advance(self) -> None:
        """Move on by one token; after the last slot, the oldest of the window is next."""
        self.slot += 1
        self.slot.masked_fill_(self.slot == self.capacity, self.sink_tokens)
        self.kv_lens.add_(1).clamp_(max=self.capacity)
        torch.sub(self.kv_lens, 1, out=self.q_start)


class StaticFullLayer(DynamicLayer):
    """Keys and values of one layer that keeps all of them.

    Args:
        capacity: slots per sequence, prompt and answer.
    """

    is_croppable = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0
        self.filled: Filled | None = None
        self.statistics: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the memory, on the first update."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (_room(x, self.capacity) for x in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new tokens; return the filled slots, or in decoding all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if self.filled is not None:
            self.filled.write(self.keys, key_states)
            self.filled.write(self.values, value_states)
            if self.statistics is not None:
                self._describe(self.filled.q_start, self.filled.kv_lens, 1)
            return self.keys, self.values
        end = self.length + key_states.shape[-2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens; {end} do not fit")
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def start(self, filled: Filled) -> None:
        """From now on, store one token per update at the slot of ``filled``."""
        assert self.keys is not None
        assert self.values is not None
        for memory in (self.keys, self.values):
            memory[:, :, self.length :] = 0  # so that kernels that read these slots find no NaN
        self.filled = filled
        if isinstance(filled, FilledPages):
            batch, heads, _, head_dim = self.keys.shape
            shape = (batch, self.capacity // PAGE, heads, 2, head_dim)
            self.statistics = self.keys.new_zeros(shape)
            self._describe(0, self.length, self.length)

    def _describe(self, first: Position, end: Position, new: int) -> None:
        assert self.keys is not None
        assert self.statistics is not None
        assert self.filled is not None
        start = self.filled.kv_start
        fill_statistics(
            self.keys.transpose(1, 2),
            self.statistics,
            first=first,
            end=end,
            new=new,
            kv_start=0 if start is None else start,
        )

    def get_seq_length(self) -> int:
        """Tokens of the prompt so far."""
        return self.length


class StaticRollingLayer(RollingLayer):
    """Keys and values of one layer that slides in decoding.

    Args:
        plan: of the layer.
        prompt_tokens: slots to allocate while a dense tail still needs the whole prompt.

    Attributes:
        reserved: keys and values in those slots, until the prompt is done.
    """

    is_croppable = False

    def __init__(self, plan: LayerPlan, prompt_tokens: int) -> None:
        super().__init__(plan)
        self.prompt_tokens = prompt_tokens
        self.filled: Filled | None = None
        self.reserved: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Like :meth:`RollingLayer.update`; in decoding, overwrite the oldest slot."""
        if self.filled is None:
            handed = super().update(key_states, value_states, *args, **kwargs)
            if self._prompt_done:
                self.reserved = None  # the caller holds the tensors until its attention is done
            return handed
        keys, values = self._stored()
        self.filled.write(keys, key_states)
        self.filled.write(values, value_states)
        return keys, values

    def _appended(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        if not self.holds_prompt:
            return super()._appended(key_states, value_states)
        if self.reserved is None:
            room = self.prompt_tokens
            self.reserved = (_room(key_states, room), _room(value_states, room))
        keys, values = self.reserved
        end = self.cumulative_length + key_states.shape[-2]
        keys[:, :, self.cumulative_length : end] = key_states
        values[:, :, self.cumulative_length : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def start(self, filled: Filled) -> None:
        """Become a ring whose slots ``filled`` describes."""
        self.keys, self.values = (self._ring(x) for x in self._stored())
        self.reserved = None
        self.filled = filled

    def _ring(self, x: Tensor) -> Tensor:
        """Stored tokens from slot 0 on, without padding; ``[batch, kv_heads, capacity, D]``."""
        if x.shape[-2] == self.capacity and self._starts is None:
            return x
        slots = torch.arange(self.capacity, device=x.device)[None]
        if self._starts is not None:
            slots = slots + (self._starts.to(x.device) - self.evicted).clamp(min=0)[:, None]
        stored = slots < x.shape[-2]
        slots = slots.clamp(max=x.shape[-2] - 1)[:, None, :, None].long()
        ring = x.gather(2, slots.expand(x.shape[0], x.shape[1], -1, x.shape[3]))
        return ring.masked_fill_(~stored[:, None, :, None], 0)


class DecodeRows(RowInfo):
    """One decoding row per sequence; all layers of a kind get the same tensors.

    Attributes:
        kinds: the filled slots, by kind of layer.
    """

    def __init__(self, kinds: dict[Kind, Filled], *, batch: int, device: torch.device) -> None:
        phase = Phase(generating=True)
        super().__init__(batch=batch, queries=1, q_offset=0, phase=phase, device=device)
        self.kinds = kinds
        self._arguments_of = {kind: filled.arguments() for kind, filled in kinds.items()}

    def arguments(
        self, plan: LayerPlan, keys: int, position_ids: Tensor | None = None
    ) -> dict[str, Any]:
        """See :meth:`RowInfo.arguments`; the same objects at every step."""
        return self._arguments_of[_kind(plan)]

    def to(self, device: Any = None, *args: Any, **kwargs: Any) -> RowInfo:
        """Refuse to move: the cache advances these tensors in place."""
        if device is None or isinstance(device, torch.dtype):
            return self
        if torch.device(device) == self.device:
            return self
        raise ValueError("a static cache serves models on one device; use the ordinary generate")

    def advance(self) -> None:
        """Move on by one token."""
        for filled in self.kinds.values():
            filled.advance()


class StaticSWAACache(SWAACache):
    """Like :class:`SWAACache`, but allocated once.

    Args:
        config: the model's configuration.
        plans: the plan of each layer.
        prompt_tokens: slots of the prompt, padding included.
        new_tokens: the most that will be generated.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        plans: Sequence[LayerPlan],
        *,
        prompt_tokens: int,
        new_tokens: int,
    ) -> None:
        super().__init__(config, plans)
        self.plans = tuple(plans)
        self._rows: DecodeRows | None = None

        def static(layer: Any, plan: LayerPlan, index: int) -> DynamicLayer:
            if isinstance(layer, RollingLayer):
                return StaticRollingLayer(plan, prompt_tokens)
            if type(layer) in (DynamicLayer, PagedLayer):
                return StaticFullLayer(prompt_tokens + new_tokens)
            raise ValueError(
                f"layer {index} keeps a {type(layer).__name__}, for which there is no static form;"
                " use the ordinary generate"
            )

        for index, plan in enumerate(plans):
            layer = self.layers[index]
            pairs = zip(parts_of(layer), plan.part_plans(), strict=True)
            parts = [static(part, own, index) for part, own in pairs]
            self.layers[index] = HeadwiseLayer(plan, parts) if plan.decode_heads else parts[0]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`transformers.Cache.update`; after decoding began, only for its own rows."""
        if self._rows is not None and last_rows() is not self._rows:
            raise ValueError(
                "a static cache serves one prompt and its answer; for another turn, pass the whole"
                " conversation without it"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def start_decoding(self, starts: Tensor | None = None) -> DecodeRows:
        """End the prompt; every later update brings one token per sequence.

        Args:
            starts: int32 ``[batch]``, slot of each sequence's first real token; None: no padding.

        Returns:
            The rows, from which the layers' attention takes its arguments; advance them after each
            token.
        """
        keys = self.layers[0].keys
        assert keys is not None
        batch, device = keys.shape[0], keys.device
        length = torch.tensor([self.get_seq_length()], device=device)
        kinds: dict[Kind, Filled] = {}
        pairs = [
            pair
            for whole, layer in zip(self.plans, self.layers, strict=True)
            for pair in zip(whole.part_plans(), parts_of(layer), strict=True)
        ]
        for plan, layer in pairs:
            assert isinstance(layer, StaticFullLayer | StaticRollingLayer)
            kind = _kind(plan)
            if kind not in kinds and isinstance(kind, tuple):
                seen = length if starts is None else length - starts
                kinds[kind] = FilledRing(seen, batch=batch, sink_tokens=kind[0], window=kind[1])
            elif kind not in kinds:
                made = Filled if kind is None else partial(FilledPages, plan)
                kinds[kind] = made(length.clone(), length.expand(batch), kv_start=starts)
            layer.start(kinds[kind])
        self._bytes = [layer_bytes(layer) for layer in self.layers]
        self._rows = DecodeRows(kinds, batch=batch, device=device)
        for index, layer in enumerate(self.layers):
            statistics = getattr(layer, "statistics", None)
            if statistics is not None:
                self._rows.statistics[index] = statistics
        return self._rows

    def reset(self) -> NoReturn:
        """Refuse: a static cache serves one prompt."""
        raise ValueError("a static cache serves one prompt; make another one")


def _kind(plan: LayerPlan) -> Kind:
    if plan.keeps_all_keys:
        # How prompt rows attend does not matter in decoding.
        return replace(plan, selected_keys=0, dense_tail=0) if plan.decode_keys else None
    assert plan.window is not None
    return plan.sink_tokens, plan.window


def _room(x: Tensor, tokens: int) -> Tensor:
    batch, heads, _, head_dim = x.shape
    return x.new_empty((batch, tokens, heads, head_dim)).transpose(1, 2)  # the layout of ``joined``
