"""An independent judge: eager attention under a mask built row by row in plain loops."""

import sys
import warnings
from dataclasses import dataclass

import torch
from transformers import AttentionInterface

from swaa.heads import HeadSelection

MASKS = {}


def loop_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    mask = by_query_head(MASKS[module.layer_idx], query.shape[1])
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).nan_to_num(0.0)
    return (weights @ value).transpose(1, 2).contiguous(), None


def dense_attention(module, query, key, value, attention_mask, **kwargs):
    """The model's own eager attention, with whatever it does beside, under our mask."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    hidden = ~by_query_head(MASKS[module.layer_idx], query.shape[1])
    mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(query.dtype).min)
    return eager(module, query, key, value, mask, **kwargs)


def by_query_head(mask, heads):
    """A mask of all heads, or of each KV head, as ``[batch, 1 or heads, queries, keys]``."""
    return mask[:, None] if mask.ndim == 3 else mask.repeat_interleave(heads // mask.shape[1], 1)


LOOP, DENSE = "swaa_loop", "swaa_dense"
# No mask function: the model passes None.
AttentionInterface.register(LOOP, loop_attention)
AttentionInterface.register(DENSE, dense_attention)


@dataclass
class Rows:
    """Which rows of a sequence are full, per layer: tail rows everywhere, answers by layer."""

    tail: set
    answers: set


def rows_of(prompt, tail, total):
    return Rows(set(range(max(0, prompt - tail), prompt)), set(range(prompt, total)))


def build_masks(
    config, layer_types, starts, total, rows, documents=None, native_window=None, kv_heads=2
):
    """Masks by layer, bool [batch, total, total]; ``rows`` is one Rows, or one per sequence.

    Where ``full_decode`` names KV heads, each has its own mask: ``[batch, kv_heads, ...]``.
    """
    made = {}

    def mask_of(layer, decode):
        full = layer in set(config.full_layers)
        kind = (layer_types[layer], full, decode is True or layer in (decode or ()))
        if kind not in made:
            made[kind] = _mask(kind, config, starts, total, rows, documents, native_window)
        return made[kind]

    if not isinstance(config.full_decode, HeadSelection):
        return {i: mask_of(i, config.full_decode) for i in range(len(layer_types))}
    named = config.full_decode.to_json()
    by_head = [[int(i) for i in named if head in named[i]] for head in range(kv_heads)]
    return {
        i: torch.stack([mask_of(i, decode) for decode in by_head], 1)
        for i in range(len(layer_types))
    }


def _mask(kind, config, starts, total, rows, documents, native_window):
    """The mask that layers of a kind share, bool [batch, total, total]."""
    layer_type, full_layer, full_decode = kind
    window, sink_tokens = config.window, config.sink_tokens
    masks = []
    for b, start in enumerate(starts):
        of = rows[b] if isinstance(rows, list) else rows
        mask = [[False] * total for _ in range(total)]
        for t in range(start, total):
            first = start
            if documents is not None:
                first = next(u for u in range(total) if documents[b][u] == documents[b][t])
            full = full_layer or t in of.tail or (t in of.answers and full_decode)
            for u in range(first, t + 1):
                if layer_type == "sliding_attention":
                    mask[t][u] = t - u < native_window
                else:
                    mask[t][u] = full or t - u < window or u - first < sink_tokens
        masks.append(mask)
    return torch.tensor(masks)


def loop_logits(model, ids, masks, position_ids, implementation=LOOP):
    """Logits of the unadapted model under the given masks; restores the implementation."""
    before = model.config._attn_implementation
    MASKS.clear()
    MASKS.update(masks)
    model.set_attn_implementation(implementation)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the model is adapted, but its attention")
            return model(input_ids=ids, position_ids=position_ids, use_cache=False).logits
    finally:
        model.set_attn_implementation(before)


def positions(starts, total):
    slots = torch.arange(total)[None].expand(len(starts), -1)
    return (slots - torch.tensor(starts)[:, None]).clamp(min=0)
