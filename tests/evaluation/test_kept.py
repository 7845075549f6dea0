"""What shipped recipes say that they keep is what the named result files say."""

import json
import re

import pytest

from swaa import results
from swaa.config import SWAAConfig
from swaa.evaluation import kept
from swaa.evaluation.run import gather
from swaa.recipes import Recipe, find_recipe, list_recipes
from tests.documents import ROOT
from tests.evaluation.fakes import executed, make_run

OURS = ("fast", "balanced", "quality", "naive", "full")


@pytest.fixture(scope="module")
def committed():
    return kept.read_runs(ROOT / "results")


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_each_number_is_what_its_file_says(recipe):
    for one in recipe.kept:
        result = results.load(ROOT / one.file)
        assert result.provenance.commit is not None
        config = result.config
        rows = {row["setting"]: row for row in result.rows if row["place"] == "all"}
        (name,) = [
            name
            for name, knobs in config["settings"].items()
            if knobs["window"] == one.window
            and SWAAConfig.from_dict(knobs | {"window": recipe.config.window}) == recipe.config
        ]
        told = (one.model, one.task, one.length, one.of)
        row, full = rows[name], rows["full"]
        assert told == (config["model"], config["task"]["task"], config["length"], row["samples"])
        assert (one.right, one.full_right) == (row["right"], full["right"])
        assert (one.score, one.full_score) == pytest.approx((row["score"], full["score"]), abs=1e-4)


def test_nothing_that_was_measured_is_left_out(committed):
    for path in kept.recipe_files():
        text = path.read_text("utf-8")
        assert kept.fill(text, committed) == text, "run: python -m swaa.evaluation.kept results"
    for name in OURS:
        told = {(one.task, one.length) for one in find_recipe(name).kept}
        assert {("multikey", 4096), ("needle", 7500), ("variable_tracking", 4096)} <= told
    assert find_recipe("paper-trained-quality").kept == ()


def test_losses_are_in_the_description():
    for recipe in list_recipes():
        if recipe.name not in ("fast", "balanced", "quality", "selected"):
            continue
        for one in recipe.kept:
            # Of what full attention hardly answers, nothing can be kept or lost.
            if one.full_right > one.of / 10 and one.right < 0.8 * one.full_right:
                assert re.search(rf"{one.task}\b", recipe.description), (recipe.name, one)


def test_recipes_are_found_by_their_knobs_whatever_the_window(prompt, tmp_path):
    settings = {
        "theirs": (SWAAConfig(window=64, sink_tokens=3, dense_tail=2), 3),
        "other": (SWAAConfig(window=64, sink_tokens=4, dense_tail=2), 4),
        "whole": (SWAAConfig(window=None), 5),
    }
    made = [
        executed(make_run(prompt, setting=name, config=config, count=6), right, tmp_path)
        for name, (config, right) in settings.items()
    ]
    (path,) = gather(made, folder=tmp_path)
    files = kept.read_runs(tmp_path)

    def found(**knobs):
        config = SWAAConfig(**knobs)
        recipe = Recipe(name="a", description="", config=config, source="", measured_on=())
        return kept.kept_by(recipe, files)

    (one,) = found(window=2048, sink_tokens=3, dense_tail=2)
    assert (one.window, one.length, one.task, one.of) == (64, 1500, "needle", 6)
    assert (one.right, one.full_right, one.score, one.full_score) == (3, 5, 0.5, 0.8333)
    assert one.file == f"results/eval/{path.name}"
    (full,) = found(window=None)
    assert (full.window, full.right, full.full_right) == (None, 5, 5)
    assert found(window=64, sink_tokens=9) == ()


def test_the_command_writes_every_recipe(tmp_path, monkeypatch):
    files = []
    for path in kept.recipe_files():
        values = json.loads(path.read_text("utf-8"))
        copy = tmp_path / path.name
        copy.write_text(json.dumps(values | {"kept": []}, indent=2))
        files.append((path, copy))
    monkeypatch.setattr(kept, "recipe_files", lambda: [copy for _, copy in files])
    kept.main(str(ROOT / "results"))
    for path, copy in files:
        assert copy.read_bytes() == path.read_bytes()
