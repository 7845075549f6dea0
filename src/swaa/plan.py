"""What a configuration costs on a model: KV bytes and FLOPs, from sizes alone.

A multiplication and an addition are two FLOPs. KV bytes are those of keys and values in the cache
of an adapted model, without the constant states of linear-attention layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from swaa.config import LayerPlan, SWAAConfig
from swaa.shapes import LayerShape, ModelShape, read_shape, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element of the cache."""

DEFAULT_DTYPE = "bfloat16"
DEFAULT_PROMPT = 32_768
"""Prompt tokens when none are given, unless the model was trained to see fewer."""

_SHARES = {
    "flops_share": "prefill_flops",
    "keys_share": "prefill_attention_flops",
    "kv_share": "kv_steady_bytes",
}


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer's part of the cost, for the whole batch.

    Attributes:
        index: of the layer.
        role: ``full``, ``selected`` (the prompt sees older keys by content; full decode), ``full
            decode`` (the prompt slides; where some KV heads have it, ``full decode in KV heads 0+2
            of 8``), ``sliding``, ``native sliding`` (the model's own window), or ``no attention``.
        kv_tokens: tokens per sequence stored once the prompt is computed; where KV heads differ,
            by those that store most.
        kv_bytes: bytes of their keys and values.
        prefill_flops: attention over the prompt, the choice of keys included.
        decode_flops: attention of the first generated token.
    """

    index: int
    role: str
    kv_tokens: int
    kv_bytes: int
    prefill_flops: int
    decode_flops: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A configuration's cost, for the whole batch.

    Attributes:
        kv_peak_bytes: most bytes held at once in prefill: while a layer's attention has its stored
            keys and the new ones, the other layers hold theirs.
        kv_steady_bytes: bytes stored once the prompt is computed.
        prefill_attention_flops: scores and weighted values of the prompt.
        decode_attention_flops: the same for the first generated token.
        prefill_linear_flops: linear layers over the prompt, and the head for its last token;
            ``None``: not derivable.
        decode_linear_flops: the same for one generated token.
        layers: the attention's cost, layer by layer.
    """

    kv_peak_bytes: int
    kv_steady_bytes: int
    prefill_attention_flops: int
    decode_attention_flops: int
    prefill_linear_flops: int | None
    decode_linear_flops: int | None
    layers: tuple[LayerCost, ...]

    @property
    def prefill_flops(self) -> int:
        """Attention and, where derivable, linear layers over the prompt."""
        return self.prefill_attention_flops + (self.prefill_linear_flops or 0)

    @property
    def decode_flops(self) -> int:
        """Attention and, where derivable, linear layers for one generated token."""
        return self.decode_attention_flops + (self.decode_linear_flops or 0)


@dataclass(frozen=True, kw_only=True)
class Price:
    """A configuration's cost next to that of the unadapted model.

    Attributes:
        config: the configuration.
        prompt_length: tokens of the prompt.
        batch: sequences.
        chunk: tokens of a prefill pass.
        dtype: of the cache.
        cost: of the configuration.
        full: cost of the unadapted model.
        weight_bytes: of the weights in that dtype; ``None``: they were not counted.
        notes: what the numbers leave out, one sentence each.
    """

    config: SWAAConfig
    prompt_length: int
    batch: int
    chunk: int
    dtype: str
    cost: Cost
    full: Cost
    notes: tuple[str, ...]
    weight_bytes: int | None = None

    def ratios(self) -> dict[str, float]:
        """Each total divided by the unadapted model's."""
        names = [field.name for field in dataclasses.fields(Cost) if field.name != "layers"]
        return {
            name: getattr(self.cost, name) / getattr(self.full, name)
            for name in [*names, "prefill_flops", "decode_flops"]
            if getattr(self.full, name)
        }

    def shares(self) -> dict[str, float]:
        """The prompt's cost, divided by its cost on the unadapted model.

        Returns:
            ``flops_share``: FLOPs; ``keys_share``: keys that queries visit; ``kv_share``: bytes
            held after the prompt.
        """
        ratios = self.ratios()
        return {share: ratios[name] for share, name in _SHARES.items() if name in ratios}

    def needed_bytes(self) -> int | None:
        """Weights plus the most keys and values at once; ``None``: weights were not counted."""
        return None if self.weight_bytes is None else self.weight_bytes + self.cost.kv_peak_bytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = dataclasses.asdict(self) | {"config": self.config.to_dict()}
        return values | {"notes": list(self.notes), "ratios": self.ratios()}


def price(
    model: ModelShape | PreTrainedConfig | str,
    config: SWAAConfig,
    *,
    prompt_length: int | None = None,
    batch: int = 1,
    chunk: int | None = None,
    dtype: str | None = None,
) -> Price:
    """What a configuration costs on a model, without the model's weights.

    Args:
        model: a shape, a Transformers configuration, or a name: folder, hub name, GGUF file,
            ``smollm2``.
        config: the configuration.
        prompt_length: tokens; default: 32,768, or the model's trained context if that is less.
        batch: sequences, all of that length.
        chunk: prompt tokens of one forward pass (``prefill_chunk_size``); default: all.
        dtype: of the cache: ``float32``, ``bfloat16`` or ``float16``; default: the checkpoint's,
            or bfloat16 if it names none.

    Raises:
        FileNotFoundError: for a model path that does not exist.
        ValueError: for a number out of range, or a model that cannot be priced, with the reason.
    """
    if isinstance(model, str):
        model = read_shape(model)
    shape = model if isinstance(model, ModelShape) else shape_of(model)
    if prompt_length is None:
        prompt_length = min(DEFAULT_PROMPT, shape.trained_context or DEFAULT_PROMPT)
    chunk = prompt_length if chunk is None else min(chunk, prompt_length)
    for name, value in (("prompt_length", prompt_length), ("batch", batch), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    dtype = dtype or shape.dtype or DEFAULT_DTYPE
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"a cache of {dtype!r} cannot be priced; give {', '.join(DTYPE_BYTES)}")
    unit = batch * DTYPE_BYTES[dtype]

    def cost_of(plans: Sequence[LayerPlan]) -> Cost:
        return _cost(shape, plans, prompt_length, chunk, batch, unit)

    plans = config.layers(len(shape.layers), [layer.kv_heads for layer in shape.layers])
    return Price(
        config=config,
        prompt_length=prompt_length,
        batch=batch,
        chunk=chunk,
        dtype=dtype,
        cost=cost_of(plans),
        full=cost_of([LayerPlan(window=None)] * len(plans)),
        notes=tuple(_notes(shape, config, plans, prompt_length)),
        weight_bytes=None if shape.parameters is None else shape.parameters * DTYPE_BYTES[dtype],
    )


def visible_pairs(plan: LayerPlan, prompt_length: int, first: int, end: int) -> int:
    """Pairs of a query at a position in ``[first, end)`` and a key that it sees.

    >>> visible_pairs(LayerPlan(window=2, sink_tokens=1), 5, 0, 5)  # 1 + 2 + 3 + 3 + 3
    12

    Args:
        plan: of the layer.
        prompt_length: tokens of the prompt.
        first: position of the first query row.
        end: position after the last one.
    """
    if plan.decode_keys and end > prompt_length:
        begin = max(first, prompt_length)
        window = plan.window or plan.decode_window or 0
        cap = window + plan.sink_tokens + plan.decode_keys
        generated = _capped(end, cap) - _capped(begin, cap)
        return generated + visible_pairs(plan, prompt_length, first, begin)
    if plan.window is None:
        return _capped(end, end) - _capped(first, end)
    # Row i sees min(i + 1, window + sinks) keys: window and sinks cover all keys of early rows.
    # Selected keys come on top, up to rounding: they come in complete blocks.
    cap = plan.window + plan.sink_tokens + plan.selected_keys
    full_from, full_until = plan.full_rows(prompt_length)
    low = end if full_from is None else min(max(full_from, first), end)
    high = end if full_until is None else min(max(full_until, low), end)
    sliding = _capped(low, cap) - _capped(first, cap) + _capped(end, cap) - _capped(high, cap)
    return sliding + _capped(high, end) - _capped(low, end)


def _capped(rows: int, cap: int) -> int:
    """Sum of ``min(i + 1, cap)`` over the first ``rows`` rows."""
    grown = min(rows, cap)
    return grown * (grown + 1) // 2 + (rows - grown) * cap


def _cost(
    shape: ModelShape,
    plans: Sequence[LayerPlan],
    prompt_length: int,
    chunk: int,
    batch: int,
    unit: int,
) -> Cost:
    # A layer whose kind is not "full" cannot be adapted, whatever the configuration says of it.
    pairs = [
        (layer, plan if layer.kind == "full" else LayerPlan(window=layer.window))
        for layer, plan in zip(shape.layers, plans, strict=True)
    ]
    parts = [part for layer, plan in pairs for part in _parts(layer, plan)]
    peak, stored = _fill(parts, prompt_length, chunk)
    tokens = iter(stored)
    layers = tuple(
        _layer_cost(
            index,
            _role(layer, plan),
            [_part_cost(*part, prompt_length, next(tokens)) for part in _parts(layer, plan)],
            batch,
            unit,
        )
        for index, (layer, plan) in enumerate(pairs)
    )
    weights = _linear_weights(shape)
    head = 2 * batch * shape.head_weights
    return Cost(
        kv_peak_bytes=peak * unit,
        kv_steady_bytes=sum(layer.kv_bytes for layer in layers),
        prefill_attention_flops=sum(layer.prefill_flops for layer in layers),
        decode_attention_flops=sum(layer.decode_flops for layer in layers),
        prefill_linear_flops=None
        if weights is None
        else 2 * batch * prompt_length * weights + head,
        decode_linear_flops=None if weights is None else 2 * batch * weights + head,
        layers=layers,
    )


def _parts(layer: LayerShape, plan: LayerPlan) -> list[tuple[LayerShape, LayerPlan]]:
    """A layer as if each group of KV heads that do the same were a layer of its own."""
    if not plan.decode_heads:
        return [(layer, plan)]
    group = layer.heads // layer.kv_heads
    return [
        (
            dataclasses.replace(layer, heads=group * len(part.heads), kv_heads=len(part.heads)),
            part.plan,
        )
        for part in plan.parts(layer.kv_heads)
    ]


class _PartCost(NamedTuple):
    """The cost of one sequence in some heads of a layer."""

    tokens: int
    elements: int
    prefill_flops: int
    decode_flops: int


def _part_cost(layer: LayerShape, plan: LayerPlan, prompt_length: int, tokens: int) -> _PartCost:
    return _PartCost(
        tokens=tokens,
        elements=_elements(layer, plan, tokens),
        prefill_flops=_attention_flops(layer, plan, prompt_length, 0, prompt_length)
        + _choice_flops(layer, plan, prompt_length),
        decode_flops=_attention_flops(layer, plan, prompt_length, prompt_length, prompt_length + 1)
        + _page_flops(layer, plan, prompt_length),
    )


def _layer_cost(
    index: int, role: str, parts: Sequence[_PartCost], batch: int, unit: int
) -> LayerCost:
    return LayerCost(
        index=index,
        role=role,
        kv_tokens=max(part.tokens for part in parts),
        kv_bytes=sum(part.elements for part in parts) * unit,
        prefill_flops=batch * sum(part.prefill_flops for part in parts),
        decode_flops=batch * sum(part.decode_flops for part in parts),
    )


def _fill(
    layers: Sequence[tuple[LayerShape, LayerPlan]], prompt_length: int, chunk: int
) -> tuple[int, list[int]]:
    """Most elements held at once while the cache fills, and each part's tokens at the end."""
    stored = [0] * len(layers)
    held = peak = 0
    for seen in range(0, prompt_length, chunk):
        new = min(chunk, prompt_length - seen)
        for index, (layer, plan) in enumerate(layers):
            peak = max(peak, held + new * _token_elements(layer))
            kept = _stored(layer, plan, seen + new, prompt_length)
            held += _elements(layer, plan, kept) - _elements(layer, plan, stored[index])
            stored[index] = kept
    return peak, stored


def _stored(layer: LayerShape, plan: LayerPlan, seen: int, prompt_length: int) -> int:
    """Tokens that a layer's cache holds after an update that ends at ``seen`` tokens."""
    if layer.kind == "none":
        return 0
    if layer.kind == "sliding":
        # Transformers stores one key fewer than the window: the next query brings its own.
        return min(seen, (layer.window or seen) - 1)
    if plan.window is None or plan.keeps_all_keys:
        return seen
    if plan.dense_tail and seen < prompt_length:
        return seen
    return min(seen, plan.window + plan.sink_tokens)


def _role(layer: LayerShape, plan: LayerPlan) -> str:
    if layer.kind == "none":
        return "no attention"
    if layer.kind == "sliding":
        return "native sliding"
    if plan.full:
        return "full"
    if plan.selected_keys:
        return "selected"
    if plan.decode_heads:
        heads = "+".join(map(str, plan.decode_heads))
        return f"full decode in KV heads {heads} of {layer.kv_heads}"
    return "full decode" if plan.full_decode else "sliding"


def _token_elements(layer: LayerShape) -> int:
    return 2 * layer.kv_heads * layer.head_dim


def _elements(layer: LayerShape, plan: LayerPlan, tokens: int) -> int:
    """Elements of the keys and values of so many tokens, and of the summaries of their pages."""
    size = _token_elements(layer)
    if not plan.decode_keys:
        return tokens * size
    from swaa.attention.pages import PAGE  # imports PyTorch

    return (tokens + tokens // PAGE) * size  # a page's mean and deviation: one key and one value


def _page_flops(layer: LayerShape, plan: LayerPlan, tokens: int) -> int:
    """FLOPs of choosing the pages of one generated token."""
    if not plan.decode_keys:
        return 0
    from swaa.attention.pages import PAGE  # imports PyTorch

    return 4 * layer.heads * layer.head_dim * (tokens // PAGE)


def _attention_flops(
    layer: LayerShape, plan: LayerPlan, prompt_length: int, first: int, end: int
) -> int:
    # Scores and weighted values: two products of head_dim per pair and query head.
    return 4 * layer.heads * layer.head_dim * visible_pairs(plan, prompt_length, first, end)


def _choice_flops(layer: LayerShape, plan: LayerPlan, prompt_length: int) -> int:
    """FLOPs of choosing the keys of a prompt's selected rows."""
    if not plan.selected_keys:
        return 0
    from swaa.attention.selection import KEY_BLOCK, ROW_GROUP  # imports PyTorch

    rows = max(0, prompt_length - plan.dense_tail)
    pairs = rows * rows // (2 * ROW_GROUP * KEY_BLOCK)  # of a mean query and a block before it
    # Two products of head_dim per pair and query head, all computed twice.
    return 8 * layer.heads * layer.head_dim * pairs


def _linear_weights(shape: ModelShape) -> int | None:
    weights = [layer.linear_weights for layer in shape.layers]
    known = [weight for weight in weights if weight is not None]
    return sum(known) if len(known) == len(weights) else None


def _notes(
    shape: ModelShape, config: SWAAConfig, plans: Sequence[LayerPlan], prompt_length: int
) -> Iterator[str]:
    sliding = [
        plan
        for layer, plan in zip(shape.layers, plans, strict=True)
        if layer.kind == "full" and plan.window is not None
    ]
    if not sliding and any(plan.window is not None for plan in plans):
        yield "Nothing changes: each layer with full attention is one of those left full."
    if sliding and config.covers(prompt_length):
        yield "The prompt fits into window and sinks: it is computed as with full attention."
    if _linear_weights(shape) is None:
        yield (
            f"FLOPs are those of softmax attention only: swaa has no formula for the linear layers"
            f" of {shape.model_type}."
        )
    if shape.trained_context and prompt_length > shape.trained_context:
        yield (
            f"The prompt of {prompt_length} tokens is longer than the {shape.trained_context} that"
            " the model was trained to see."
        )
