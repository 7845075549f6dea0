"""`swaa recipes`: the shipped recipes, what each costs, and what it keeps."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

from swaa.cli.table import format_table

if TYPE_CHECKING:
    from swaa.plan import Price
    from swaa.recipes import Kept, Recipe
    from swaa.shapes import ModelShape

PROMPT = 32_768
"""Prompt tokens for which costs are given."""

START = (
    "Start with 'selected', the nearest to full attention. SGLang does not serve it: take",
    "'balanced' there, or 'quality' where facts must be combined. 'fast' is for one or two facts",
    "in a long text, where speed counts most. Prompts under 8,192 tokens gain little.",
)
"""Which recipe to start with, in the README's words; the list begins with it."""

_WIDTH = 96


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "recipes",
        help="list the shipped recipes, or show one",
        description="List the shipped recipes with what each costs, or show one in full. Costs are"
        " computed for a model of Qwen3-4B's shape and a prompt of 32,768 tokens, in units of full"
        " attention's; see 'swaa plan' for your model.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe to show (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON (default: text)")


def run(args: argparse.Namespace) -> int:
    """Print the recipes."""
    from swaa.recipes import find_recipe, list_recipes

    if args.name is not None:
        recipe = find_recipe(args.name)
        print(json.dumps(_values(recipe)) if args.json else _one(recipe))
    elif args.json:
        print(json.dumps([_values(recipe) for recipe in list_recipes()]))
    else:
        print(_all(list_recipes()))
    return 0


def reference_shape() -> ModelShape:
    """A model of Qwen3-4B's sizes, the one that the paper uses most."""
    from swaa.shapes import LayerShape, ModelShape

    width, heads, kv_heads, head_dim, inner = 2560, 32, 8, 128, 9728
    layer = LayerShape(
        kind="full",
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        linear_weights=2 * width * head_dim * (heads + kv_heads) + 3 * width * inner,
    )
    return ModelShape(model_type="qwen3", layers=(layer,) * 36, head_weights=151_936 * width)


def _price(recipe: Recipe) -> Price:
    from swaa.plan import price

    return price(reference_shape(), recipe.config, prompt_length=PROMPT)


def _values(recipe: Recipe) -> dict[str, Any]:
    cost = {"shape": "Qwen3-4B", "prompt_length": PROMPT, "ratios": _price(recipe).ratios()}
    return {**recipe.to_dict(), "cost": cost}


def _all(recipes: tuple[Recipe, ...]) -> str:
    rows = []
    for recipe in recipes:
        ratios = _price(recipe).ratios()
        rows.append(
            (
                recipe.name,
                f"{ratios['prefill_flops']:.2f}",
                f"{ratios['kv_steady_bytes']:.2f}",
                recipe.config.describe(),
            )
        )
    table = format_table(("recipe", "prefill FLOPs", "KV", "configuration"), rows)
    costs = f"Costs: a model of Qwen3-4B's shape, {PROMPT:,} prompt tokens, full = 1."
    parts = ["\n".join(START), table, costs]
    parts.append("\n".join(f"{_title(recipe)}\n{_measured(recipe)}" for recipe in recipes))
    return "\n\n".join([*parts, "More on one: swaa recipes NAME"])


def _one(recipe: Recipe) -> str:
    ratios = _price(recipe).ratios()
    return "\n\n".join(
        [
            f"{recipe.name}: {recipe.config.describe()}",
            textwrap.fill(recipe.description, _WIDTH),
            f"Source\n{_indented(recipe.source)}",
            f"Keeps\n{_measured(recipe)}",
            f"Cost on a model of Qwen3-4B's shape, {PROMPT:,} prompt tokens, full attention = 1\n"
            + format_table(("quantity", "ratio"), [(k, f"{v:.3f}") for k, v in ratios.items()]),
            json.dumps(recipe.config.to_dict()),
        ]
    )


def _title(recipe: Recipe) -> str:
    """Name and first sentence, which says what the recipe is for."""
    sentence, _, _ = recipe.description.partition(". ")
    return textwrap.fill(f"{recipe.name}: {sentence.rstrip('.')}. Keeps:", _WIDTH)


def _measured(recipe: Recipe) -> str:
    lines = [*_kept(recipe.kept), *recipe.measured_on]
    return "\n".join(map(_indented, lines or ["nothing was measured yet"]))


def _kept(kept: tuple[Kept, ...]) -> list[str]:
    """One line per model, length and window: right answers, then full attention's."""
    groups: dict[str, list[str]] = {}
    for one in kept:
        window = "" if one.window is None else f", window {one.window:,}"
        head = f"{one.model}, {one.length:,} tokens{window}"
        groups.setdefault(head, []).append(_answers(one))
    return [f"{head}: {', '.join(answers)}" for head, answers in groups.items()]


def _answers(kept: Kept) -> str:
    """``needle 91 of 100 (full 94)``; with mean scores where answers may be right in part.

    Full attention's own line has no comparison.
    """
    said = f"{kept.task} {kept.right} of {kept.of}"
    full = "" if kept.window is None else f"full {kept.full_right}"
    if round(kept.of * kept.score) != kept.right:
        said += f", by score {100 * kept.score:.0f} %"
        full += f", {100 * kept.full_score:.0f} %" if full else ""
    return f"{said} ({full})" if full else said


def _indented(text: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False
    )
