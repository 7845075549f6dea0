"""A cache layer that keeps all keys of some KV heads, and sinks and window of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from swaa.attention.heads import take_heads
from swaa.config import LayerPlan

Stored = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each part, ``[batch, kv_heads of the part, tokens, head_dim]``."""


class HeadwiseLayer(CacheLayerMixin):
    """Keys and values of one layer, stored part by part (:meth:`swaa.config.LayerPlan.parts`).

    Args:
        plan: of the layer; some of its KV heads keep every key.
        parts: an empty cache layer for each part.
    """

    is_sliding = False

    def __init__(self, plan: LayerPlan, parts: Sequence[DynamicLayer]) -> None:
        # Without the constructor of the mixin: it assigns what is a property here.
        self.plan = plan
        self.parts = tuple(parts)
        self._handed: Stored | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values, each in the part of its head.

        Args:
            key_states: ``[batch, kv_heads, tokens, head_dim]``.
            value_states: as ``key_states``.
            args: passed on.
            kwargs: passed on.

        Returns:
            In an empty cache what was given, all heads together; otherwise keys and values of the
            first part. All parts' are then to be had from :meth:`hand_over`.
        """
        fresh = not self.get_seq_length()
        handed: list[tuple[Tensor, Tensor]] = []
        pairs = zip(self.parts, self.plan.parts(key_states.shape[1]), strict=True)
        # Sliding heads first: they refuse what cannot be served, before anything is stored.
        for layer, part in reversed(list(pairs)):
            new = (take_heads(x, part.heads, dim=1) for x in (key_states, value_states))
            handed.insert(0, layer.update(*new, *args, **kwargs))
        self._handed = None if fresh else tuple(handed)
        return (key_states, value_states) if fresh else handed[0]

    def hand_over(self) -> Stored | None:
        """What attention sees in each part since the last update, once; None: it was given all."""
        handed, self._handed = self._handed, None
        return handed

    @property
    def keys(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Keys of the heads that keep all."""
        return self.parts[0].keys

    @property
    def values(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Values of the heads that keep all."""
        return self.parts[0].values

    @property
    def is_initialized(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether anything was stored."""
        return all(part.is_initialized for part in self.parts)

    @property
    def is_croppable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether tokens can be removed again."""
        return all(part.is_croppable for part in self.parts)

    @property
    def statistics(self) -> Tensor | None:
        """Statistics of the pages of the heads that keep all, where they choose what they read."""
        return getattr(self.parts[0], "statistics", None)

    @property
    def record_past(self) -> bool:
        """Whether everything is kept until the next :meth:`crop`."""
        return any(getattr(part, "record_past", False) for part in self.parts)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: parts begin at their first update."""

    def activate_past_recording(self) -> None:
        """Keep everything until the next :meth:`crop` (assisted decoding)."""
        for part in self.parts:
            record = getattr(part, "activate_past_recording", None)
            if record is not None:
                record()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, given as a negative number."""
        for part in reversed(self.parts):  # the sliding heads may refuse
            part.crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Give each beam the keys of the beam it continues."""
        for part in self.parts:
            part.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence."""
        for part in self.parts:
            part.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the sequences."""
        for part in self.parts:
            part.batch_select_indices(indices)

    def offload(self) -> None:
        """Move to the CPU."""
        for part in self.parts:
            part.offload()

    def prefetch(self) -> None:
        """Move back."""
        for part in self.parts:
            part.prefetch()

    def reset(self) -> None:
        """Forget everything."""
        for part in self.parts:
            part.reset()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Slots that the next pass sees in heads that keep all; none was freed before them."""
        return self.parts[0].get_mask_sizes(query_length)

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.parts[0].get_seq_length()

    def get_max_length(self) -> int:
        """The most tokens that fit; -1: no limit."""
        return self.parts[0].get_max_length()


def parts_of(layer: Any) -> tuple[Any, ...]:
    """The parts of a cache layer; a layer whose heads do the same is its only part."""
    return layer.parts if isinstance(layer, HeadwiseLayer) else (layer,)
