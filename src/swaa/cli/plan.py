"""`swaa plan`: what a recipe costs on a model, without its weights."""

from __future__ import annotations

import argparse
import itertools
import json
from typing import TYPE_CHECKING, Any

from swaa.cli.options import (
    DEFAULT_RECIPE,
    add_config_options,
    add_flags,
    config_from,
    settings_from,
)
from swaa.cli.table import format_bytes, format_flops, format_table

if TYPE_CHECKING:
    from swaa.plan import LayerCost, Price
    from swaa.shapes import ModelShape


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "plan",
        help="price recipes on a model: KV bytes and FLOPs, without loading weights",
        description="Price recipes on a model from its configuration alone, next to the"
        " unchanged model. The cost is arithmetic, not a measurement.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder, config.json, hub name, GGUF file, smollm2, or a shape of 'swaa bench"
        " generate'",
    )
    add_flags(
        parser,
        """
        --recipes R,R  several recipes, a row each; knobs are turned on all but full attention
            (default: one, in full detail)
        --gpu-memory GIB  report whether weights and KV fit into a GPU with this many GiB (default:
            not said)
        --prompt-length N  tokens of the prompt (default: 32768, or the trained context if that is
            less)
        --batch N=1  sequences
        --chunk N  tokens of one prefill pass (default: the whole prompt)
        --dtype T  of weights and cache: float32, bfloat16, float16 (default: what 'swaa generate'
            loads here: the checkpoint's; or bfloat16)
        --json  print JSON (default: a table)
        """,
    )
    add_config_options(parser, default=f"what the model's config.json carries, or {DEFAULT_RECIPE}")


def run(args: argparse.Namespace) -> int:
    """Print the price."""
    from swaa.plan import price
    from swaa.shapes import read_shape

    # The flags first: a mistake in them should not wait until the model is read.
    if args.gpu_memory is not None and not args.gpu_memory > 0:
        raise ValueError(f"--gpu-memory {args.gpu_memory}: expected GiB, a number above 0")
    several = args.recipes is not None
    settings = settings_from(args, args.recipes) if several else [("", config_from(args))]
    shape = read_shape(args.model)
    if not several and args.recipe is None and shape.swaa is not None:
        settings = [("", config_from(args, default=shape.swaa))]
    sizes = {name: getattr(args, name) for name in ("prompt_length", "batch", "chunk", "dtype")}
    prices = {name: price(shape, config, **sizes) for name, config in settings}
    if args.json:
        values = [{"recipe": name, **_values(price, args)} for name, price in prices.items()]
        print(json.dumps(values if several else _values(prices[""], args)))
    elif several:
        print(_side_by_side(prices, shape, args))
    else:
        print(_text(prices[""], shape, args))
    return 0


def _values(price: Price, args: argparse.Namespace) -> dict[str, Any]:
    fits = {} if args.gpu_memory is None else {"fits": _spare(price, args) >= 0}
    return {"model": args.model, **price.to_dict(), **fits}


def _spare(price: Price, args: argparse.Namespace) -> float:
    """Bytes of GPU memory left after weights and KV; below 0: they do not fit."""
    needed = price.needed_bytes()
    assert needed is not None  # a shape that was read has a count of weights
    return args.gpu_memory * 2**30 - needed


def _fits(price: Price, args: argparse.Namespace) -> str:
    spare = _spare(price, args)
    left = format_bytes(abs(spare))
    return f"fits, {left} left" if spare >= 0 else f"does not fit, {left} too much"


def _room(price: Price, args: argparse.Namespace) -> str:
    fits = _fits(price, args)
    note = "; activations take some of it" if _spare(price, args) >= 0 else ""
    return f"On {args.gpu_memory:g} GiB, weights and KV at its peak: {fits}{note}."


def _sizes(price: Price, shape: ModelShape, args: argparse.Namespace) -> str:
    """What was priced, in one line."""
    chunks = "" if price.chunk == price.prompt_length else f" in chunks of {price.chunk}"
    assumed = ""
    if args.dtype is None and shape.dtype is None:
        assumed = " (assumed: the checkpoint names no type)"
    return (
        f"{price.batch} x {price.prompt_length} prompt tokens{chunks}, weights"
        f" {format_bytes(price.weight_bytes or 0)}, cache in {price.dtype}{assumed}"
    )


def _side_by_side(prices: dict[str, Price], shape: ModelShape, args: argparse.Namespace) -> str:
    headers = ["recipe", "KV at its peak", "KV, prompt done", "KV %", "prefill", "prefill %"]
    headers += ["a token", "a token %"]
    rows = []
    for name, price in prices.items():
        ratios, cost = price.ratios(), price.cost
        row = [name, format_bytes(cost.kv_peak_bytes), format_bytes(cost.kv_steady_bytes)]
        row += [f"{100 * ratios['kv_steady_bytes']:.0f}"]
        for total in ("prefill_flops", "decode_flops"):
            row += [format_flops(getattr(cost, total)), f"{100 * ratios[total]:.0f}"]
        rows.append([*row, *([] if args.gpu_memory is None else [_fits(price, args)])])
    if args.gpu_memory is not None:
        headers.append(f"on {args.gpu_memory:g} GiB, weights and peak KV")
    first = next(iter(prices.values()))
    notes = [f"{name}: {note}" for name, price in prices.items() for note in price.notes]
    configs = [f"{name}: {price.config.describe()}" for name, price in prices.items()]
    blocks = [f"{args.model}: {_sizes(first, shape, args)}; % of full attention"]
    blocks += [format_table(headers, rows), "\n".join(configs), "\n".join(notes)]
    return "\n\n".join(block for block in blocks if block)


def _text(price: Price, shape: ModelShape, args: argparse.Namespace) -> str:
    layers = [
        (
            _indices(group),
            group[0].role,
            group[0].kv_tokens,
            format_bytes(group[0].kv_bytes),
            format_flops(group[0].prefill_flops),
            format_flops(group[0].decode_flops),
        )
        for group in _groups(price.cost.layers)
    ]
    headers = ("layers", "attention", "KV tokens", "KV each", "prefill each", "a token each")
    blocks = [
        f"{args.model}: {price.config.describe()}\n{_sizes(price, shape, args)}",
        format_table(headers, layers),
        _totals(price),
        "" if args.gpu_memory is None else _room(price, args),
        "\n".join(price.notes),
    ]
    return "\n\n".join(block for block in blocks if block)


def _totals(price: Price) -> str:
    rows: list[tuple[str, str, str, str]] = []

    def add(title: str, name: str, form: Any) -> None:
        ours, theirs = getattr(price.cost, name), getattr(price.full, name)
        rows.append((title, form(ours), form(theirs), f"{ours / theirs:.3f}"))

    add("KV at its peak in prefill", "kv_peak_bytes", format_bytes)
    add("KV once the prompt is computed", "kv_steady_bytes", format_bytes)
    add("prefill, attention", "prefill_attention_flops", format_flops)
    add("a generated token, attention", "decode_attention_flops", format_flops)
    if price.cost.prefill_linear_flops is not None:
        add("prefill, with linear layers", "prefill_flops", format_flops)
        add("a generated token, with linear layers", "decode_flops", format_flops)
    return format_table(("in all", "this", "full attention", "ratio"), rows)


def _groups(layers: tuple[LayerCost, ...]) -> list[list[LayerCost]]:
    """Groups of layers that cost the same, ordered by each group's first layer."""
    groups: dict[Any, list[LayerCost]] = {}
    for layer in layers:
        key = (layer.role, layer.kv_bytes, layer.prefill_flops, layer.decode_flops)
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def _indices(group: list[LayerCost]) -> str:
    """Layer indices with runs shortened: ``0-8,12,27-35``."""
    runs = []
    for _, run_of in itertools.groupby(enumerate(group), lambda pair: pair[1].index - pair[0]):
        indices = [layer.index for _, layer in run_of]
        runs.append(str(indices[0]) if len(indices) == 1 else f"{indices[0]}-{indices[-1]}")
    return ",".join(runs)
