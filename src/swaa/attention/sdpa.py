"""PyTorch's scaled_dot_product_attention in linear time: the backend for any device.

Query rows are cut into chunks of one kind. A sliding chunk reads the sinks and the keys of its own
window only; full rows (dense tail, full decode, full layers) are a separate dense pass. Where rows
are selected, a chunk is one block of them and also reads the key blocks chosen for it.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from swaa.attention.call import AttentionCall, AttentionOutput, Selection, attend_apart
from swaa.attention.mask import column, visible
from swaa.attention.pages import nothing_to_choose, page_mask, rows_apart, without_pages
from swaa.attention.selection import (
    KEY_BLOCK,
    ROW_BLOCK,
    chosen_keys,
    nothing_to_select,
    select,
)

CHUNK_ROWS = 256
"""Query rows per sliding chunk; a dense chunk has fewer where its mask exceeds MASK_ENTRIES."""
MASK_ENTRIES = 1 << 26
FEW_ROWS = 16
"""A call of at most this many rows (decoding) is one dense pass: no host decisions, no chunks."""


class Chunk(NamedTuple):
    """Query rows ``[first, end)`` and the keys ``[left, right)`` they see, sinks not counted."""

    first: int
    end: int
    left: int
    right: int


def refusal(call: AttentionCall) -> str | None:
    """Why this backend cannot serve the call; it serves every call, without an lse."""
    return None


def attend(call: AttentionCall) -> AttentionOutput:
    """Attention over sinks and window only, chunk by chunk; ``lse`` is None."""
    if call.packed:
        return attend_apart(call, attend, unseen=False)
    if call.paged:
        call = call.gathered()
    if call.q.shape[1] == 0 or call.k.shape[1] == 0:
        return AttentionOutput(call.q.new_zeros((*call.q.shape[:3], call.v.shape[3])), None)
    if call.decode_keys:
        return AttentionOutput(_by_pages(call), None)
    if call.selects and not nothing_to_select(call):
        call = replace(call, selection=call.selection or select(call))
    else:
        call = replace(call, selection=None)
    if _plain_causal(call):
        return AttentionOutput(_sdpa(call.q, call.k, call.v, None, call.scale, causal=True), None)
    if call.selection is not None and call.q.shape[0] > 1 and call.q.shape[1] > FEW_ROWS:
        # Blocks of rows begin at different slots in each sequence.
        alone = [attend(call.one(n)).output for n in range(call.q.shape[0])]
        return AttentionOutput(torch.cat(alone), None)
    positions = call.positions()
    left = call.left_rows(positions)
    if call.q.shape[1] <= FEW_ROWS:
        return AttentionOutput(_few_rows(call, positions, left), None)
    parts = [_chunk(call, positions, left, chunk) for chunk in plan_chunks(call, left)]
    return AttentionOutput(torch.cat(parts, dim=1), None)


def _by_pages(call: AttentionCall) -> Tensor:
    """A call in which rows may choose pages: those rows read every key, under their own masks."""
    if nothing_to_choose(call):
        return attend(without_pages(call)).output
    apart = rows_apart(call)
    if apart is not None:
        before, after = apart
        parts = [] if before is None else [attend(before).output]
        return torch.cat([*parts, *([] if after is None else _read_pages(after))], dim=1)
    if call.selects:  # selected rows differ between sequences
        return torch.cat([attend(call.one(n)).output for n in range(len(call.q))])
    return torch.cat(_read_pages(call), dim=1)


def _read_pages(call: AttentionCall) -> list[Tensor]:
    entries = call.k.shape[1] * call.q.shape[0] * call.k.shape[2]
    step = max(FEW_ROWS, MASK_ENTRIES // max(1, entries))
    parts = []
    for first in range(0, call.q.shape[1], step):
        rows = slice(first, first + step)
        part = replace(
            call,
            q=call.q[:, rows],
            left=None if call.left is None else call.left[:, rows],
            q_start=call.q_start + first,  # pyright: ignore[reportOptionalOperand]
        )
        parts.append(_masked_sdpa(part, part.q, part.k, part.v, page_mask(part)))
    return parts


def plan_chunks(call: AttentionCall, left: Tensor) -> list[Chunk]:
    """Cut the query rows where their kind changes, then into chunks, each with its key range."""
    rows, keys = call.q.shape[1], call.k.shape[1]
    q_start = _lowest(call.q_start)
    spread = _highest(call.q_start) - q_start  # how far apart the sequences' first rows are
    cuts = {0, rows}
    for edge in (call.full_from, call.full_until):
        if edge is not None:
            cuts |= {_lowest(edge) - q_start - spread, _highest(edge) - q_start}
    if call.selection is not None:
        first = _lowest(call.kv_start) - q_start
        cuts |= set(range(first + -(first // ROW_BLOCK) * ROW_BLOCK, rows, ROW_BLOCK))
    edges = sorted(cut for cut in cuts if 0 <= cut <= rows)
    chunks = []
    for first, end in itertools.pairwise(edges):
        step = CHUNK_ROWS
        if _leftmost(call, left, first, end) <= _highest(call.kv_start):
            step = max(FEW_ROWS, min(step, MASK_ENTRIES // max(1, keys * call.q.shape[0])))
        for a in range(first, end, step):
            b = min(a + step, end)
            right = min(q_start + spread + b, keys)
            chunks.append(Chunk(a, b, min(_leftmost(call, left, a, b), right), right))
    return chunks


def _leftmost(call: AttentionCall, left: Tensor, first: int, end: int) -> int:
    """Leftmost key of rows of one kind: computed where the call is all integers, else read."""
    numbers = (call.q_start, call.kv_start, call.full_from, call.full_until)
    if call.left is not None or any(isinstance(number, Tensor) for number in numbers):
        return max(0, int(left[:, first:end].min()))
    row = _lowest(call.q_start) + first
    until = row + 1 if call.full_until is None else _lowest(call.full_until)
    full = call.full_from is not None and _lowest(call.full_from) <= row < until
    if call.window is None or full:
        return _lowest(call.kv_start)
    return max(0, row - call.window + 1)


def _chunk(call: AttentionCall, positions: Tensor, left: Tensor, chunk: Chunk) -> Tensor:
    rows = slice(chunk.first, chunk.end)
    q, i = call.q[:, rows], positions[:, rows]
    keys = torch.arange(chunk.left, chunk.right, device=q.device)[None]
    k, v = call.k[:, chunk.left : chunk.right], call.v[:, chunk.left : chunk.right]
    mask = _visible(call, i, keys, left[:, rows])
    if call.sink_tokens and chunk.left > 0:
        # The sinks that the slice does not already hold, once per sequence.
        sinks, held = _sinks(call, chunk.left)
        sink_mask = _visible(call, i, sinks, left[:, rows]) & held[:, None]
        batch = max(mask.shape[0], sink_mask.shape[0])
        mask = torch.cat([m.expand(batch, -1, -1) for m in (sink_mask, mask)], dim=2)
        k = torch.cat([_take(call.k, sinks), k], dim=1)
        v = torch.cat([_take(call.v, sinks), v], dim=1)
    if call.selection is None:
        return _masked_sdpa(call, q, k, v, mask)
    slots, seen = _chosen_slots(call, call.selection, i[0], left[0, rows])
    seen = torch.cat([seen[None], mask[:, None].expand(1, len(seen), -1, -1)], dim=3)
    index = slots.T[None, :, :, None]
    k, v = (
        torch.cat([whole.gather(1, index.expand(-1, -1, -1, whole.shape[3])), part], dim=1)
        for whole, part in ((call.k, k), (call.v, v))
    )
    return _masked_sdpa(call, q, k, v, seen)


def _chosen_slots(
    call: AttentionCall, selection: Selection, positions: Tensor, left: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys chosen for the rows of one block of one sequence, and which of them each row lacks.

    Returns:
        Slots ``[kv_heads, chosen]``, and bool ``[kv_heads, rows, chosen]``: True where a row sees a
        key by choice alone, neither as a sink nor through its window.
    """
    start = _lowest(call.kv_start)
    first = max(0, _lowest(call.q_start) - start) // ROW_BLOCK
    r = max(0, (int(positions[-1]) - start) // ROW_BLOCK - first)
    blocks, count = selection.blocks[0, :, r].long(), selection.counts[0, :, r]
    within = torch.arange(KEY_BLOCK, device=blocks.device)
    slots = (start + blocks[:, :, None] * KEY_BLOCK + within).flatten(1)
    listed = torch.arange(blocks.shape[1], device=blocks.device) < count[:, None]
    real = listed.repeat_interleave(KEY_BLOCK, dim=1) & (slots >= start + call.sink_tokens)
    older = torch.minimum(left, positions + 1)
    seen = real[:, None] & (slots[:, None] < older[:, None])
    return slots.clamp(0, call.k.shape[1] - 1), seen


def _few_rows(call: AttentionCall, positions: Tensor, left: Tensor) -> Tensor:
    keys = torch.arange(call.k.shape[1], device=call.q.device)[None]
    mask = _visible(call, positions, keys, left)
    if call.selection is not None:
        real = _visible(call, positions, keys, torch.zeros_like(left))
        mask = mask[:, None] | (chosen_keys(call, call.selection) & real[:, None])
    return _masked_sdpa(call, call.q, call.k, call.v, mask)


def _visible(call: AttentionCall, positions: Tensor, keys: Tensor, left: Tensor) -> Tensor:
    mask = visible(positions, keys, left, kv_start=call.kv_start, sink_tokens=call.sink_tokens)
    if call.kv_lens is not None:
        mask = mask & (keys < column(call.kv_lens))[:, None]
    return mask


def _sinks(call: AttentionCall, before: int) -> tuple[Tensor, Tensor]:
    """Positions ``[batch or 1, sinks]`` of the sink tokens, and which are less than ``before``."""
    count = min(call.sink_tokens, before)
    sinks = torch.arange(count, device=call.q.device)[None] + column(call.kv_start)
    held = sinks < before
    return sinks.clamp(max=call.k.shape[1] - 1), held


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """Rows of ``x`` ``[batch, keys, heads, head_dim]`` at per-sequence positions."""
    if positions.shape[0] == 1:
        return x[:, positions[0]]
    return x.gather(1, positions[:, :, None, None].expand(-1, -1, *x.shape[2:]))


def _masked_sdpa(call: AttentionCall, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    if mask.ndim == 3:  # the same for all heads
        mask = mask[:, None]
    if call.kv_lens is not None:  # slots beyond the length may hold anything, NaN included
        used = mask.any(dim=(1, 2))[:, :, None, None]
        k, v = (torch.where(used, x, torch.zeros_like(x)) for x in (k, v))
    if isinstance(call.kv_start, int) and call.kv_start == 0 and call.kv_lens is None:
        return _sdpa(q, k, v, mask, call.scale)
    # A padding row sees nothing: let it see everything and clear its output.
    seen = mask.any(dim=3, keepdim=True)
    output = _sdpa(q, k, v, mask | ~seen, call.scale)
    seen = seen.repeat_interleave(q.shape[2] // seen.shape[1], dim=1)
    return output * seen.transpose(1, 2)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool = False
) -> Tensor:
    groups = q.shape[2] // k.shape[2]
    if mask is not None and mask.shape[1] > 1:
        mask = mask.repeat_interleave(groups, dim=1)
    output = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=groups > 1,
    )
    return output.transpose(1, 2)


def _plain_causal(call: AttentionCall) -> bool:
    """Whether every key is real and no row is cut: ordinary causal attention, no mask to build."""
    uncut = call.window is None or call.k.shape[1] <= call.window
    return (
        uncut
        and call.left is None
        and call.kv_lens is None
        and isinstance(call.kv_start, int)
        and call.kv_start == 0
        and isinstance(call.q_start, int)
        and call.q_start == 0
        and call.q.shape[1] == call.k.shape[1]
    )


def _lowest(value: int | Tensor | None) -> int:
    return int(value.min()) if isinstance(value, Tensor) else (value or 0)


def _highest(value: int | Tensor | None) -> int:
    return int(value.max()) if isinstance(value, Tensor) else (value or 0)
