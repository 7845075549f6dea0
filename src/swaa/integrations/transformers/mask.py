"""What every layer gets as its ``attention_mask``: the numbers of the mask's rule, not a matrix.

Transformers calls a registered mask function once per forward pass and passes its result to each
layer. Ours returns a :class:`RowInfo`, from which each layer's attention makes its arguments.
"""

from __future__ import annotations

import copy
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from swaa.attention.mask import Position
from swaa.config import LayerPlan
from swaa.phase import Phase, current_phase

FEW_ROWS = 16
"""In a pass of at most this many rows, an offset in a tensor stays one (static cache decoding)."""

_LAST: ContextVar[RowInfo | None] = ContextVar("swaa_rows", default=None)


class RowInfo:
    """Slots, padding and phase of one forward pass's query rows.

    Slots count padding and everything ever cached. A layer whose cache has freed keys sees
    ``total - keys`` fewer slots; :meth:`arguments` shifts the numbers by as many.

    Attributes:
        batch: sequences.
        queries: query rows.
        q_offset: slot of the first row; a tensor with a static cache.
        starts: int32 ``[batch]``, slot of each first real token; None without padding.
        native_window: window that a natively sliding layer keeps.
        kv_offset: slots that a natively sliding layer's cache has dropped.
        phase: what is known about the rows.
        may_pack: whether positions that restart begin another sequence, as in training without
            mask and cache.
        statistics: statistics of the pages of each layer's keys, by layer; the cache puts them here
            for the attention of the same pass.
        parts: keys and values of layers whose KV heads do not all keep the same, part by part
            (:meth:`swaa.config.LayerPlan.parts`), likewise; attention takes them out.
    """

    ndim = 4  # Transformers takes a mask of 4 dimensions as ready-made

    def __init__(
        self,
        *,
        batch: int,
        queries: int,
        q_offset: Position,
        phase: Phase,
        device: torch.device,
        starts: Tensor | None = None,
        native_window: int | None = None,
        kv_offset: int = 0,
        may_pack: bool = False,
    ) -> None:
        self.batch = batch
        self.queries = queries
        self.q_offset = q_offset
        self.starts = starts
        self.native_window = native_window
        self.kv_offset = kv_offset
        self.phase = phase
        self.device = device
        self.may_pack = may_pack
        self.statistics: dict[int, Tensor] = {}
        self.parts: dict[int, tuple[tuple[Tensor, Tensor], ...]] = {}
        self._memo: dict[Any, Any] = {}

    def contiguous(self) -> RowInfo:
        """Return self: generate calls this on a mask made before a compiled forward pass."""
        return self

    def to(self, device: Any = None, *args: Any, **kwargs: Any) -> RowInfo:
        """A copy on another device: accelerate moves a layer's arguments by this method."""
        if device is None or isinstance(device, torch.dtype):
            return self
        device = torch.device(device)  # accelerate calls a GPU by its number
        if device == self.device:
            return self
        moved = copy.copy(self)
        moved._memo = {}
        moved.device = device
        moved.starts = _moved(self.starts, device)
        moved.q_offset = _moved(self.q_offset, device)
        moved.phase = self.phase._replace(
            prompt_length=_moved(self.phase.prompt_length, device),
            rows=_moved(self.phase.rows, device),
        )
        return moved

    @property
    def prompt_end(self) -> int | None:
        """Slot where the longest prompt ends, or None; a tensor is read once for all layers."""
        if "end" not in self._memo:
            prompt = self.phase.prompt_length
            self._memo["end"] = int(prompt.max()) if isinstance(prompt, Tensor) else prompt
        return self._memo["end"]

    @property
    def may_choose(self) -> bool:
        """Whether some rows may be after their prompts, and so choose the keys they read."""
        return self.phase.rows is None and not self.phase.full and not self.within_prompts()

    def arguments(
        self, plan: LayerPlan, keys: int, position_ids: Tensor | None = None
    ) -> dict[str, Any]:
        """Keyword arguments of :func:`swaa.swaa_attention` for one layer.

        Args:
            plan: what the layer does; ignored by a natively sliding layer.
            keys: number of key slots that the layer's cache returned.
            position_ids: logical positions ``[1 or batch, queries]``; where they restart, packed
                sequences begin.

        Raises:
            ValueError: when the plan depends on the prompt's end and nobody declared it.
        """
        if self.native_window is not None:
            plan = LayerPlan(window=self.native_window)
        elif self.phase.full:
            plan = LayerPlan(window=None)
        elif plan.decode_keys and (self.phase.rows is not None or self.within_prompts()):
            plan = _reading_all(plan)
        key = (plan, keys)
        if key not in self._memo:
            self._memo[key] = self._arguments(plan, keys, position_ids)
        return self._memo[key]

    def _arguments(self, plan: LayerPlan, keys: int, position_ids: Tensor | None) -> dict[str, Any]:
        if plan.needs_prompt_length and self.phase.rows is None:
            require_prompt_length(self.phase)
        documents = self._documents(position_ids)
        if documents is not None:
            return self._packed(plan, documents)
        gone = self._slots_gone(keys)
        arguments: dict[str, Any] = {
            "window": plan.window,
            "sink_tokens": plan.sink_tokens,
            "q_start": self._first_row(gone),
            "kv_start": None
            if self.starts is None
            else (self.starts - gone).clamp(min=0).to(torch.int32),
        }
        if plan.needs_prompt_length and self.phase.rows is not None:
            rows = self._full_rows(plan, self.phase.rows, None)
            arguments["left"] = self._left(plan, rows, gone)
        elif plan.needs_prompt_length:
            assert self.phase.prompt_length is not None
            full_from, full_until = full_rows(plan, self.phase.prompt_length)
            arguments["full_from"] = _shifted(full_from, gone)
            arguments["full_until"] = _shifted(full_until, gone)
            if plan.decode_keys:  # such a layer has freed nothing
                arguments["window"] = plan.window or plan.decode_window
                arguments["decode_keys"] = plan.decode_keys
                arguments["decode_from"] = _int32(self.phase.prompt_length)
        if plan.selected_keys and not self._behind_prompts():
            arguments["selected_keys"] = plan.selected_keys
        return arguments

    def within_prompts(self) -> bool:
        """Whether every row belongs to a prompt, as far as the host knows without waiting."""
        end = self.phase.prompt_length
        if isinstance(self.q_offset, Tensor) or not isinstance(end, int):
            return False
        return self.q_offset + self.queries <= end

    def _behind_prompts(self) -> bool:
        """Whether no row belongs to a prompt, as far as the host knows without waiting."""
        if isinstance(self.q_offset, Tensor) or self.phase.rows is not None:
            return False
        return self.prompt_end is not None and self.q_offset >= self.prompt_end

    def _slots_gone(self, keys: int) -> int:
        if self.native_window is not None:
            return self.kv_offset
        if isinstance(self.q_offset, Tensor):
            return 0  # a static cache keeps every slot
        return max(0, self.q_offset + self.queries - keys)

    def _first_row(self, gone: int) -> Position:
        if isinstance(self.q_offset, Tensor):
            return (self.q_offset - gone).to(torch.int32).expand(self.batch)
        return self.q_offset - gone

    def _full_rows(self, plan: LayerPlan, answer: Tensor, documents: Tensor | None) -> Tensor:
        """Rows that see everything: answers under full decode, and the tail before each answer."""
        if answer.shape != (self.batch, self.queries):
            raise ValueError(
                f"attention_rows got shape {tuple(answer.shape)} for a forward pass of"
                f" {(self.batch, self.queries)} tokens"
            )
        full = answer & plan.full_decode
        if plan.dense_tail:
            full = full | tail_rows(answer, plan.dense_tail, documents)
        return full

    def _left(self, plan: LayerPlan, full: Tensor, gone: int) -> Tensor:
        assert plan.window is not None
        first = self._first_row(gone)
        slots = torch.arange(self.queries, device=full.device)[None]
        slots = slots + (first[:, None] if isinstance(first, Tensor) else first)
        starts = 0 if self.starts is None else (self.starts - gone).clamp(min=0)[:, None]
        return torch.where(full, starts, slots - plan.window + 1).to(torch.int32)

    def _documents(self, position_ids: Tensor | None) -> Tensor | None:
        """Document number of each token ``[batch, tokens]``; None unless sequences are packed."""
        if not self.may_pack or position_ids is None:
            return None
        restarts = torch.diff(position_ids, dim=-1) != 1
        if torch.compiler.is_compiling():  # compiled code cannot branch on positions
            message = "torch.compile cannot serve packed sequences"
            torch.ops.aten._assert_async.msg(~restarts.any(), message)
            return None
        if "documents" not in self._memo:
            documents = torch.nn.functional.pad(restarts.cumsum(-1), (1, 0))
            packed = self.queries > 1 and bool(restarts.any())
            self._memo["documents"] = documents.expand(self.batch, -1) if packed else None
        return self._memo["documents"]

    def _packed(self, plan: LayerPlan, documents: Tensor) -> dict[str, Any]:
        """Arguments of a batch of packed rows, flattened to one row of ``batch * tokens``."""
        first = torch.ones_like(documents, dtype=torch.bool)
        first[:, 1:] = documents[:, 1:] != documents[:, :-1]
        ends = torch.nonzero(first.flatten()).flatten()
        total = torch.tensor([documents.numel()], device=ends.device)
        offsets = torch.cat([ends, total]).to(torch.int32)
        arguments: dict[str, Any] = {
            "window": plan.window,
            "sink_tokens": plan.sink_tokens,
            "cu_seqlens_q": offsets,
            "cu_seqlens_k": offsets,
            "selected_keys": plan.selected_keys,
        }
        if plan.needs_prompt_length:
            if self.phase.rows is None:
                raise ValueError(
                    "packed sequences have no single prompt length: declare the answer rows with"
                    " 'with swaa.attention_rows(labels != -100):'"
                )
            assert plan.window is not None
            full = self._full_rows(plan, self.phase.rows, documents).flatten()
            lengths = offsets.diff().long()
            starts = torch.repeat_interleave(offsets[:-1].long(), lengths)
            local = torch.arange(documents.numel(), device=starts.device) - starts
            left = torch.where(full, 0, local - plan.window + 1)
            arguments["left"] = left.to(torch.int32)[None]
        return arguments


def full_rows(plan: LayerPlan, prompt_length: Position) -> tuple[Position, Position | None]:
    """``[full_from, full_until)`` of a layer, for one prompt length or one per sequence."""
    if plan.full:
        return 0, None
    if isinstance(prompt_length, int):
        first, until = plan.full_rows(prompt_length)
        assert first is not None
        return first, until
    first = (prompt_length - plan.dense_tail).clamp(min=0)
    return first.to(torch.int32), None if plan.full_decode else prompt_length.to(torch.int32)


def tail_rows(answer: Tensor, dense_tail: int, documents: Tensor | None) -> Tensor:
    """Rows at most ``dense_tail`` before the next answer token of their own sequence.

    With a tail of 2 (``a`` is an answer)::

        . . . . a a . . . a
        0 0 1 1 0 0 0 1 1 0

    Args:
        answer: bool ``[batch, tokens]``.
        dense_tail: rows before each answer span.
        documents: document numbers ``[batch, tokens]``; a tail does not cross into another one.
    """
    tokens = answer.shape[1]
    slots = torch.arange(tokens, device=answer.device).expand_as(answer)
    following = torch.where(answer, slots, tokens).flip(-1).cummin(-1).values.flip(-1)
    near = ~answer & (following - slots <= dense_tail) & (following < tokens)
    if documents is None:
        return near
    return near & (documents.gather(1, following.clamp(max=tokens - 1)) == documents)


def require_prompt_length(phase: Phase) -> None:
    """Raise unless the phase says where the prompt ends."""
    if phase.prompt_length is None:
        raise ValueError(
            "the prompt length is not declared, and full decode or a dense tail depends on it:"
            " call model.generate(...), or wrap the call in 'with swaa.prompt_length(n):'"
            " or 'with swaa.attention_rows(rows):' (outside torch.compile, which cannot see either)"
        )


def last_rows() -> RowInfo | None:
    """The rows of the forward pass under way, for a cache that must know their padding."""
    return _LAST.get()


def announce(rows: RowInfo) -> None:
    """Set the rows of the next forward pass, for a caller that passes ready-made ones."""
    _LAST.set(rows)


def swaa_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Position = 0,
    kv_offset: int = 0,
    attention_mask: Any = None,
    mask_function: Any = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,  # dtype, config, ...: passed by the interface, not needed by the rule
) -> RowInfo:
    """The mask function that Transformers calls; see AttentionMaskInterface.

    Raises:
        ValueError: for masks with holes, for models that add their own masks, and for attention in
            both directions.
    """
    if isinstance(attention_mask, RowInfo):  # made before a compiled forward pass
        return attention_mask
    if use_vmap or getattr(mask_function, "__qualname__", "").startswith("or_masks"):
        raise ValueError("this model overlays a mask of its own, which swaa cannot keep")
    if allow_is_bidirectional_skip is not None:  # only bidirectional masks have this option
        raise ValueError("this model attends in both directions; swaa adapts causal attention")
    if isinstance(q_offset, Tensor):
        # A static layer counts in place, before its attention runs: keep the present number.
        q_offset = int(q_offset) if q_length > FEW_ROWS else q_offset.clone()
    phase = current_phase()
    starts = None
    if attention_mask is not None:
        # generate has checked the prompt's mask, and appends only ones to it.
        known = phase.generating and FEW_ROWS >= q_length < attention_mask.shape[-1]
        starts = left_padding(attention_mask, check=not known)
    rows = RowInfo(
        batch=batch_size,
        queries=q_length,
        q_offset=q_offset,
        starts=starts,
        native_window=local_size,
        kv_offset=kv_offset,
        phase=phase,
        device=torch.device(device),
        # Transformers takes restarting positions as packing only without mask and cache, and then
        # requires a mask; it also requires one for one row of a static cache.
        may_pack=attention_mask is None and not allow_is_causal_skip and q_length > 1,
    )
    if local_size is None and not torch.compiler.is_compiling():
        _LAST.set(rows)
    return rows


def left_padding(mask: Tensor, *, check: bool = True) -> Tensor | None:
    """First real slot of each sequence.

    Args:
        mask: 1 where a slot is real, ``[batch, slots]``.
        check: whether to look for holes, and for any padding, which waits for the device.

    Returns:
        int32 ``[batch]``, or None where a check found no left padding.

    Raises:
        ValueError: when real slots are not consecutive.
    """
    real = mask.bool()
    starts = (real.long().cumsum(-1) == 0).sum(-1)
    if not check:
        return starts.to(torch.int32)
    ends = mask.shape[-1] - (real.flip(-1).long().cumsum(-1) == 0).sum(-1)
    holes = ((real.long().sum(-1) + starts != ends) & (ends > 0)).any()
    message = "the attention mask has holes; swaa serves left and right padding only"
    if torch.compiler.is_compiling():  # compiled code cannot branch on the mask's values
        torch.ops.aten._assert_async.msg(~holes, message)
        return starts.to(torch.int32)
    if bool(holes):
        raise ValueError(message)
    return starts.to(torch.int32) if bool(starts.any()) else None


def _shifted(value: Position | None, gone: int) -> Position | None:
    if value is None or not gone:
        return value
    return (value - gone).clamp(min=0) if isinstance(value, Tensor) else max(0, value - gone)


def _int32(value: Position) -> Position:
    return value.to(torch.int32) if isinstance(value, Tensor) else value


def _reading_all(plan: LayerPlan) -> LayerPlan:
    """The plan of rows that do not choose what they read: prompt rows, and declared rows."""
    if plan.full:
        return LayerPlan(window=None)
    return replace(plan, decode_keys=0)


def _moved(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
