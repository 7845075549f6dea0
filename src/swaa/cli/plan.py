"""`swaa plan`: what a recipe costs on a model, without its weights."""

from __future__ import annotations

import argparse
import itertools
import json
from typing import TYPE_CHECKING, Any

from swaa.cli.options import DEFAULT_RECIPE, add_config_options, config_from
from swaa.cli.table import format_bytes, format_flops, format_table

if TYPE_CHECKING:
    from swaa.plan import LayerCost, Price


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "plan",
        help="price a recipe on a model: KV bytes and FLOPs, without loading weights",
        description="Price a recipe on a model from its configuration alone, beside the model as"
        " it is. The cost is arithmetic, not a measurement.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder, hub name, GGUF file, or smollm2")
    parser.add_argument(
        "--prompt-length",
        type=int,
        metavar="N",
        help="tokens of the prompt (default: 32768, or the trained context if that is less)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences (default: 1)")
    parser.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="tokens of one prefill pass (default: the whole prompt)",
    )
    parser.add_argument(
        "--dtype",
        metavar="T",
        help="of the cache: float32, bfloat16, float16 (default: the checkpoint's, or bfloat16)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    add_config_options(parser, default=f"what the model's config.json carries, or {DEFAULT_RECIPE}")


def run(args: argparse.Namespace) -> int:
    """Print the price."""
    from swaa.config import SWAAConfig
    from swaa.plan import price
    from swaa.shapes import read_shape

    # The flags first: a mistake in them should not wait for the model.
    config = config_from(args)
    shape = read_shape(args.model)
    if args.recipe is None and shape.swaa is not None:
        config = config_from(args, default=SWAAConfig.from_dict(shape.swaa))
    result = price(
        shape,
        config,
        prompt_length=args.prompt_length,
        batch=args.batch,
        chunk=args.chunk,
        dtype=args.dtype,
    )
    print(
        json.dumps({"model": args.model, **result.to_dict()}) if args.json else _text(result, args)
    )
    return 0


def _text(price: Price, args: argparse.Namespace) -> str:
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
    chunks = "" if price.chunk == price.prompt_length else f" in chunks of {price.chunk}"
    headers = ("layers", "attention", "KV tokens", "KV each", "prefill each", "a token each")
    blocks = [
        f"{args.model}: {price.config.describe()}\n"
        f"{price.batch} x {price.prompt_length} prompt tokens{chunks}, cache in {price.dtype}",
        format_table(headers, layers),
        _totals(price),
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
    """Layers that cost the same, together, in order of the first of each."""
    groups: dict[Any, list[LayerCost]] = {}
    for layer in layers:
        key = (layer.role, layer.kv_bytes, layer.prefill_flops, layer.decode_flops)
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def _indices(group: list[LayerCost]) -> str:
    """Layer indices, runs shortened: ``0-8,12,27-35``."""
    runs = []
    for _, run_of in itertools.groupby(enumerate(group), lambda pair: pair[1].index - pair[0]):
        indices = [layer.index for _, layer in run_of]
        runs.append(str(indices[0]) if len(indices) == 1 else f"{indices[0]}-{indices[-1]}")
    return ",".join(runs)
