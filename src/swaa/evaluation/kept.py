"""What shipped recipes keep: copied from gathered result files into the recipes' own JSON.

``python -m swaa.evaluation.kept results`` reads every gathered file of ``results/eval`` and writes
the numbers into the recipes whose knobs it ran, with any window. A test compares.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from swaa import results
from swaa.config import SWAAConfig
from swaa.evaluation import gathered
from swaa.evaluation.gathered import Finished
from swaa.recipes import Kept, Recipe, list_recipes

TRAINED = "paper-trained-"
"""Recipes of trained models: results of other models with the same knobs do not apply to them."""

RULER = "ruler:"
"""RULER's tasks are told by their mean, among ``measured_on``, and not one by one."""


def read_runs(folder: str | Path) -> list[list[Finished]]:
    """The runs of each gathered file, which answer the same prompts.

    Raises:
        ValueError: for a file that cannot be read.
    """
    paths = sorted((Path(folder) / gathered.KIND).glob("*.json"))
    return [gathered.read(path) for path in paths if gathered.is_gathered(results.load(path))]


def kept_by(recipe: Recipe, files: Iterable[Sequence[Finished]]) -> tuple[Kept, ...]:
    """What a recipe keeps of full attention's answers, for each model, task, length and window.

    Each entry comes from one file, which ran both; where several did, from the newest.

    Args:
        recipe: compared by its knobs except the window, which is given next to the number.
        files: the runs of each file.
    """
    if recipe.name.startswith(TRAINED):
        return ()
    pairs = [
        (run, full)
        for runs in files
        for full in runs
        if _config(full).window is None
        for run in runs
        if _same(recipe.config, _config(run))
        and "right" in run.result.rows[0]
        and not run.result.config["task"]["task"].startswith(RULER)
    ]
    newest: dict[tuple[object, ...], Kept] = {}
    for run, full in sorted(pairs, key=lambda pair: pair[0].result.provenance.created):
        kept = _kept(run, full)
        newest[kept.model, kept.task, kept.length, kept.window] = kept
    return tuple(
        sorted(
            newest.values(), key=lambda kept: (kept.model, kept.length, kept.window or 0, kept.task)
        )
    )


def fill(text: str, files: Sequence[Sequence[Finished]]) -> str:
    """A recipe's JSON with a new ``kept``."""
    values: dict[str, Any] = json.loads(text)
    (recipe,) = (one for one in list_recipes() if one.name == values["name"])
    values["kept"] = [dataclasses.asdict(kept) for kept in kept_by(recipe, files)]
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def recipe_files() -> Iterator[Path]:
    """The JSON files of the shipped recipes, in this checkout."""
    folder = importlib.resources.files("swaa.recipes")
    yield from (Path(str(file)) for file in folder.iterdir() if file.name.endswith(".json"))


def _same(recipe: SWAAConfig, run: SWAAConfig) -> bool:
    if recipe.window is None or run.window is None:
        return recipe.window == run.window
    return dataclasses.replace(recipe, window=run.window) == run


def _config(run: Finished) -> SWAAConfig:
    return SWAAConfig.from_dict(run.result.config["swaa"])


def _kept(run: Finished, full: Finished) -> Kept:
    ours, theirs = (one.result.rows[0] for one in (run, full))
    config = run.result.config
    return Kept(
        model=config["model"],
        task=config["task"]["task"],
        length=config["length"],
        window=_config(run).window,
        of=ours["samples"],
        right=ours["right"],
        full_right=theirs["right"],
        score=round(ours["score"], 4),
        full_score=round(theirs["score"], 4),
        file=f"results/{gathered.KIND}/{run.path.name}",
    )


def main(folder: str) -> None:
    """Write ``kept`` of every shipped recipe."""
    files = read_runs(folder)
    for path in recipe_files():
        path.write_text(fill(path.read_text("utf-8"), files), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
