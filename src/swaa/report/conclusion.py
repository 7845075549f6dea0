"""The conclusion of a folder of results: the four tiles that the page opens with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from swaa.recipes import Recipe, list_recipes
from swaa.report.cost import SHAPES, shares_of
from swaa.report.figures import Answers, Figures, Measurement

ENOUGH = 0.95
"""The cheapest recipe that keeps this share of full attention's right answers is recommended."""

_PRICED_AT = 32_768
_KV = ("KV after the prompt", "live KV of one request in vLLM")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One statement.

    Attributes:
        title: what it is about.
        value: one word or number.
        text: what that means, and what it was measured on.
        run: index of the run that measured it; ``None``: several did, or none.
    """

    title: str
    value: str
    text: str
    run: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Right answers of a recipe and of full attention, on the same prompts."""

    right: float
    full: float
    asked: int
    groups: int
    models: tuple[str, ...]

    @property
    def share(self) -> float:
        return self.right / self.full


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What the page opens with.

    Attributes:
        recipe: the recipe that the tiles describe; empty: none was measured.
        tiles: the recipe, the quality that it keeps, its time to first token and its KV.
    """

    recipe: str
    tiles: tuple[Tile, ...]


def conclude(figures: Sequence[Figures]) -> Conclusion:
    """Find the recipe to start with, its measured quality and its cost."""
    recipes = [recipe for recipe in list_recipes() if recipe.config.window is not None]
    kept = {recipe.name: found for recipe in recipes if (found := _kept(figures, recipe.name))}
    recipe = _recommended(recipes, kept)
    measured = [(run, item) for run, figure in enumerate(figures) for item in figure.measurements]
    name = recipe.name if recipe else _fastest(recipes, measured)
    return Conclusion(
        recipe=name,
        tiles=(
            _start(recipe, kept),
            _quality(name, kept.get(name)),
            _first_token(name, measured),
            _kv(name, measured),
        ),
    )


def _kept(figures: Iterable[Figures], name: str) -> _Kept | None:
    """A recipe's answers next to full attention's, each comparison once."""
    pairs: dict[str, tuple[Answers, Answers, str]] = {}
    for figure in figures:
        for answer in figure.answers:
            if answer.setting == name and answer.samples:
                full = _full(figures, answer.group)
                if full is not None:
                    pairs.setdefault(answer.group, (answer, full, figure.subject))
    asked = sum(full.samples for _, full, _ in pairs.values())
    right_in_full = sum(full.accuracy * full.samples for _, full, _ in pairs.values())
    if not right_in_full:
        return None
    return _Kept(
        right=sum(answer.accuracy * answer.samples for answer, _, _ in pairs.values()),
        full=right_in_full,
        asked=asked,
        groups=len(pairs),
        models=tuple(dict.fromkeys(model for _, _, model in pairs.values())),
    )


def _full(figures: Iterable[Figures], group: str) -> Answers | None:
    all_answers = (answer for figure in figures for answer in figure.answers)
    return next((one for one in all_answers if one.group == group and one.full), None)


def _recommended(recipes: Sequence[Recipe], kept: dict[str, _Kept]) -> Recipe | None:
    """The cheapest recipe that keeps enough; where none does, the one that keeps most."""
    known = [recipe for recipe in recipes if recipe.name in kept]
    enough = [recipe for recipe in known if kept[recipe.name].share >= ENOUGH]
    if enough:
        # Of equally cheap recipes, the one that keeps more.
        return min(enough, key=lambda one: (_price(one), -kept[one.name].share))
    return max(known, key=lambda one: kept[one.name].share, default=None)


def _price(recipe: Recipe) -> float:
    """FLOPs of a long prompt in a known model, as a share of full attention's, rounded to 1 %."""
    shares = shares_of(next(iter(SHAPES)), recipe.config, _PRICED_AT)
    return round((shares or {}).get("flops_share", 1.0), 2)


def _fastest(recipes: Sequence[Recipe], measured: Sequence[tuple[int, Measurement]]) -> str:
    """A folder without answers still has speeds: the recipe with the shortest first-token time."""
    names = [recipe.name for recipe in recipes]
    pairs = [(own, full) for own, full, _ in _pairs(names, measured, ("time to first token",))]
    longest = max((own.tokens for own, _ in pairs), default=0)
    at_it = [pair for pair in pairs if pair[0].tokens == longest]
    if not at_it:
        return ""
    return max(at_it, key=lambda pair: pair[1].value / pair[0].value)[0].series


def _pairs(
    names: Sequence[str], measured: Sequence[tuple[int, Measurement]], starts: tuple[str, ...]
) -> Iterator[tuple[Measurement, Measurement, int]]:
    """What recipes measured, next to the best full attention at the same length."""
    full: dict[tuple[str, str, int], Measurement] = {}
    for _, item in measured:
        place = (item.measure, item.group, item.tokens)
        if item.full and (place not in full or item.value < full[place].value):
            full[place] = item
    for run, item in measured:
        other = full.get((item.measure, item.group, item.tokens))
        if other and item.series in names and item.measure.startswith(starts):
            yield item, other, run


def _quality(name: str, kept: _Kept | None) -> Tile:
    title = "Quality kept"
    if kept is None:
        text = "No recipe was asked the same questions as full attention; swaa eval does that."
        return Tile(title=title, value="not measured", text=text)
    text = (
        f"With {name}, {kept.right:,.0f} of {kept.asked:,} prompts get the right answer; full"
        f" attention gets {kept.full:,.0f} ({kept.groups} tasks and lengths,"
        f" {' and '.join(kept.models)})."
    )
    return Tile(title=title, value=f"{100 * kept.share:.0f} %", text=text)


def _first_token(name: str, measured: Sequence[tuple[int, Measurement]]) -> Tile:
    title = "Time to first token"
    pairs = _pairs([name], measured, ("time to first token",))
    found = max(pairs, key=lambda pair: pair[0].tokens, default=None)
    if found is None:
        text = "Not measured next to full attention; swaa bench generate does that."
        return Tile(title=title, value="not measured", text=text)
    own, full, run = found
    text = (
        f"With {name}, {own.value:,.3g} s instead of {full.value:,.3g} s for a prompt of"
        f" {own.tokens:,} tokens ({own.group}). Shorter prompts gain less."
    )
    return Tile(title=title, value=f"{full.value / own.value:.1f}x faster", text=text, run=run)


def _kv(name: str, measured: Sequence[tuple[int, Measurement]]) -> Tile:
    title = "KV cache"
    pairs = [pair for pair in _pairs([name], measured, _KV) if "arithmetic" not in pair[0].measure]
    found = max(pairs, key=lambda pair: pair[0].tokens, default=None)
    if found is None:
        text = "Bytes were not counted next to full attention; swaa bench generate does that."
        return Tile(title=title, value="not measured", text=text)
    own, full, run = found
    place = (own.measure, own.group, own.tokens)
    all_here = [one for _, one in measured if (one.measure, one.group, one.tokens) == place]
    least = min(all_here, key=lambda one: one.value)
    text = (
        f"With {name}, {_bytes(own.value)} are held after {own.tokens:,} tokens; full"
        f" attention holds {_bytes(full.value)}."
    )
    if least.value < 0.99 * own.value:
        text += f" The least here: {least.series}, {_bytes(least.value)}."
    share = 100 * own.value / full.value
    return Tile(title=title, value=f"{share:.0f} % of full", text=text, run=run)


def _bytes(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**29 else f"{size / 2**20:,.1f} MiB"


def _start(recipe: Recipe | None, kept: dict[str, _Kept]) -> Tile:
    title = "Recipe to start with"
    if recipe is None:
        text = "No shipped recipe was measured here; swaa recipes lists them."
        return Tile(title=title, value="not known", text=text)
    of = f"of {len(kept)} shipped recipes that were measured here"
    why = f"it keeps the most of full attention's right answers, {of}"
    if len(kept) == 1:
        why = "the only shipped recipe that was measured here"
    elif kept[recipe.name].share >= ENOUGH:
        why = f"the cheapest {of} to keep {100 * ENOUGH:.0f} % of full attention's right answers"
    text = f"{recipe.config.describe()}: {why}. Try it on your own prompts first."
    return Tile(title=title, value=recipe.name, text=text)
