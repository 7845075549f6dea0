"""The shipped recipes: named configurations, their sources and what they keep."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.resources
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa.config import SWAAConfig
from swaa.layers import shown

DEFAULT = "selected"
"""The recipe where none is named: of the shipped ones it keeps most."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a recipe kept of full attention's answers in one measurement, on the same prompts.

    Attributes:
        model: its name, with its quantisation where it has one.
        task: what was asked, as `swaa eval` names it.
        length: of each prompt (tokens).
        window: in this measurement (keys); ``None``: the recipe is full attention.
        of: number of prompts.
        right: answered rightly under the recipe.
        full_right: answered rightly by full attention.
        score: mean share of what was asked for, under the recipe, 0 to 1.
        full_score: likewise, of full attention.
        file: path of the results in the repository.
    """

    model: str
    task: str
    length: int
    window: int | None
    of: int
    right: int
    full_right: int
    score: float
    full_score: float
    file: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named configuration.

    Attributes:
        name: what to type.
        description: what it does and when to choose it.
        config: the knobs.
        source: who proposed it: rows of a paper's table, or own runs.
        measured_on: other results, one per line, each next to full attention's; empty: none.
        kept: results from files under ``results/``, next to full attention's.
    """

    name: str
    description: str
    config: SWAAConfig
    source: str
    measured_on: tuple[str, ...]
    kept: tuple[Kept, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As in the recipe's JSON file."""
        return {
            "name": self.name,
            "description": self.description,
            "config": self.config.to_dict(),
            "provenance": {"source": self.source, "measured_on": list(self.measured_on)},
            "kept": [dataclasses.asdict(kept) for kept in self.kept],
        }


@functools.cache
def list_recipes() -> tuple[Recipe, ...]:
    """The shipped recipes, ours before the paper's, by name."""
    files = importlib.resources.files(__name__).iterdir()
    recipes = [_parse(file.read_text("utf-8")) for file in files if file.name.endswith(".json")]
    return tuple(
        sorted(recipes, key=lambda recipe: (recipe.name.startswith("paper-"), recipe.name))
    )


def find_recipe(name: str) -> Recipe:
    """The shipped recipe of that name.

    Raises:
        ValueError: for an unknown name, with the known ones and the closest.
    """
    known = {recipe.name: recipe for recipe in list_recipes()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(
        f"unknown recipe {shown(name)}{meant} Give one of {', '.join(known)},"
        " or a path to a JSON file"
    )


def load_recipe(name_or_path: str | os.PathLike[str]) -> SWAAConfig:
    """The configuration that a name or a file stands for.

    Args:
        name_or_path: name of a shipped recipe; path of a JSON file (a saved configuration, a
            recipe, or the paper's own settings); ``file#index`` for one of several settings.

    Raises:
        TypeError: for anything but text or a path.
        ValueError: for an unknown name, or a file that is not a configuration.
        FileNotFoundError: for a path without a file.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"expected the name of a recipe or a path, got {shown(name_or_path)}")
    text = os.fspath(name_or_path)
    if text in {recipe.name for recipe in list_recipes()}:
        return find_recipe(text).config
    file = text.rpartition("#")[0] or text
    if _is_file(file):
        return SWAAConfig.load(text)
    if isinstance(name_or_path, os.PathLike) or file.endswith(".json") or os.sep in file:
        raise FileNotFoundError(
            f"no recipe file {shown(file)[1:-1]};"
            " give a JSON file, or a name that 'swaa recipes' lists"
        )
    return find_recipe(text).config


def resolve(
    recipe: SWAAConfig | Recipe | Mapping[str, Any] | str | os.PathLike[str], **knobs: Any
) -> SWAAConfig:
    """The configuration for anything that names one; every front end calls this.

    >>> resolve("naive", window=512).describe()
    'window 512, 0 sinks'

    Args:
        recipe: a configuration, a recipe, a mapping in either JSON form (such as the ``swaa`` of
            a checkpoint's config.json), or what :func:`load_recipe` takes.
        knobs: fields of the configuration that replace the recipe's.

    Raises:
        TypeError: for anything else.
        ValueError: for an unknown name, an invalid configuration, or knobs that would do nothing.
        FileNotFoundError: for a path without a file.
    """
    if isinstance(recipe, SWAAConfig):
        config = recipe
    elif isinstance(recipe, Recipe):
        config = recipe.config
    elif isinstance(recipe, Mapping):
        config = SWAAConfig.from_dict(recipe)
    else:
        config = load_recipe(recipe)
    if config.window is None and knobs and "window" not in knobs:
        raise ValueError(
            f"{', '.join(knobs)} would do nothing: the recipe is full attention; give a window, too"
        )
    return dataclasses.replace(config, **knobs) if knobs else config


def _is_file(path: str) -> bool:
    """Whether there is such a file; not for names that are too long or cannot be read."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def _parse(text: str) -> Recipe:
    values = json.loads(text)
    return Recipe(
        name=values["name"],
        description=values["description"],
        config=SWAAConfig.from_dict(values["config"]),
        source=values["provenance"]["source"],
        measured_on=tuple(values["provenance"]["measured_on"]),
        kept=tuple(Kept(**kept) for kept in values["kept"]),
    )
