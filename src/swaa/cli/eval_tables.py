"""Tables of outcomes for `swaa eval`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swaa.cli.table import Cell, format_table

if TYPE_CHECKING:
    from swaa.evaluation.run import Outcome

_HEADERS = (
    "task", "tokens", "recipe", "samples", "right %", "95 % interval", "score %", "no answer",
    "of full %", "p", "FLOPs %", "KV %", "first token s",
)  # fmt: skip
_PLACES = {"sinks": "in the sinks", "beyond": "between", "window": "in the window"}


def print_tables(outcomes: Sequence[Outcome]) -> None:
    """Print accuracy against full attention, accuracy by the needle's place, and perplexity."""
    from swaa.evaluation.comparison import against_full, places
    from swaa.evaluation.run import is_likelihood

    sorted_by = places(outcomes)
    answered = [outcome for outcome in outcomes if not is_likelihood(outcome.run)]
    read = [outcome for outcome in outcomes if is_likelihood(outcome.run)]
    if answered:
        pairs = against_full(answered)
        print(format_table(_HEADERS, [_cells(o, p) for o, p in zip(answered, pairs, strict=True)]))
        if sorted_by is not None:
            _print_places(answered, *sorted_by)
        print()
    if read:
        _print_perplexities(read, *(sorted_by or (None, 0)))
    for name, config in {label(o): o.run.config for o in outcomes}.items():
        print(f"{name}: {config.describe()}")
    for line in _idle(outcomes):
        print(line)
    unjudged = sum(outcome.result.rows[0]["unjudged"] for outcome in answered)
    if unjudged:
        print(f"{unjudged} verdicts of the judge could not be read; they count as wrong.")
    print(f"results: {outcomes[0].path.parent}")


def to_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The outcomes as JSON values."""
    from swaa.evaluation.comparison import against_full

    return [
        {
            "recipe": outcome.run.setting,
            "task": outcome.run.task.name,
            "length": outcome.run.length,
            "file": outcome.path.name,
            **pair,
            "rows": list(outcome.result.rows),
            "provenance": dataclasses.asdict(outcome.result.provenance),
        }
        for outcome, pair in zip(outcomes, against_full(outcomes), strict=True)
    ]


def _cells(outcome: Outcome, pair: Mapping[str, Any]) -> tuple[Cell, ...]:
    row = outcome.result.rows[0]
    return (
        outcome.run.task.name,
        outcome.run.length,
        label(outcome),
        row["samples"],
        f"{100 * row['accuracy']:.1f}",
        f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
        f"{100 * row['score']:.1f}",
        row["no_answer"],
        None if pair["retention"] is None else f"{pair['retention']:.1f}",
        None if pair["p"] is None else f"{pair['p']:.3g}",
        _percent(row.get("flops_share")),
        _percent(row.get("kv_share")),
        None if row["first_token_s"] is None else f"{row['first_token_s']:.2f}",
    )


def label(outcome: Outcome) -> str:
    """A recipe's name with the knobs that change it: ``naive sink_tokens=64``."""
    from swaa.recipes import list_recipes

    name, config = outcome.run.setting, outcome.run.config
    shipped = {recipe.name: recipe.config for recipe in list_recipes()}.get(name, config)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    turned = [
        f"{knob}={_word(value)}"
        for knob, value in values.items()
        if value != getattr(shipped, knob)
    ]
    return " ".join([name, *turned])


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "all" if value else "none"
    return str(value)


def _idle(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each setting and task whose prompts window and sinks cover."""
    from swaa.evaluation.comparison import nothing_slides

    lines = []
    for outcome in outcomes:
        if nothing_slides(outcome):
            longest = max(sample["length"] for sample in outcome.samples)
            what = f"every prompt of {outcome.run.task.name}, of up to {longest:,} tokens"
            lines.append(f"{label(outcome)}: {outcome.run.config.idle(what)}")
    return lines


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.0f}"


def _print_places(outcomes: Sequence[Outcome], window: int, sink_tokens: int) -> None:
    from swaa.evaluation.comparison import right_by_place

    rows = []
    for outcome in outcomes:
        found = right_by_place(outcome, window, sink_tokens)
        if any(count for _, count in found.values()):
            shares = [f"{right} of {count}" for right, count in (found[name] for name in _PLACES)]
            run = outcome.run
            rows.append((run.task.name, run.length, label(outcome), *shares))
    if rows:
        print(f"\nBy where the needle lies: the first {sink_tokens} tokens, the last {window}, or")
        print("between; of several needles, all of them, else they count as between.")
        print(format_table(("task", "tokens", "recipe", *_PLACES.values()), rows))


def _print_perplexities(outcomes: Sequence[Outcome], window: int | None, sink_tokens: int) -> None:
    from swaa.evaluation.tasks.perplexity import split

    rows = []
    for outcome in outcomes:
        means = split(outcome.samples, window=window, sink_tokens=sink_tokens)
        shown = ("-" if nll is None else f"{math.exp(nll):.2f}" for nll in means.values())
        run = outcome.run
        rows.append((run.length, label(outcome), len(outcome.samples), *shown))
    if window is not None:
        print(f"Perplexity of the first {window + sink_tokens} tokens, of the prompt beyond, and")
        print("of what counts as generated:")
    print(format_table(("tokens", "recipe", "texts", "inside", "beyond", "answer"), rows))
    print()
