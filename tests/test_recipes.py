import dataclasses
import importlib.resources
import json

import pytest

import swaa
from swaa.config import SWAAConfig
from swaa.recipes import find_recipe, list_recipes, load_recipe, resolve

FILES = sorted(
    file for file in importlib.resources.files("swaa.recipes").iterdir() if ".json" in file.name
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_has_provenance_and_its_own_name(file):
    values = json.loads(file.read_text("utf-8"))
    assert values == find_recipe(values["name"]).to_dict()
    assert file.name == f"{values['name']}.json"
    assert values["description"].endswith(".")
    assert values["provenance"]["source"]


@pytest.mark.parametrize("num_layers", [1, 4, 30, 36])
@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_every_recipe_fits_any_depth(recipe, num_layers):
    assert len(recipe.config.layers(num_layers)) == num_layers


def test_recipes_are_ours_then_the_papers():
    names = [recipe.name for recipe in swaa.list_recipes()]
    ours = ["balanced", "fast", "full", "naive", "quality", "selected"]
    assert names[:7] == [*ours, "paper-nonthinking"]
    assert all(name.startswith("paper-") for name in names[6:])
    assert len(names[6:]) == 5


def test_what_a_newcomer_reads_on_parity_and_on_naive():
    for name in ("paper-nonthinking", "paper-thinking-quality", "paper-trained-quality"):
        assert "odd was best on Qwen3-4B, even on Qwen3-30B-A3B" in find_recipe(name).description
    assert "Do not use it" in find_recipe("naive").description


def test_ours_are_fast_with_one_knob_turned():
    fast = load_recipe("fast")
    assert fast == SWAAConfig(window=2048, sink_tokens=128, full_decode=True, dense_tail=128)
    for name in ("balanced", "quality"):
        values = load_recipe(name).to_dict()
        assert values != fast.to_dict()
        assert values | {"full_layers": []} == fast.to_dict()
    chosen = load_recipe("selected")
    assert dataclasses.replace(chosen, selected_layers=(), selected_keys=0) == fast


def test_a_path_a_setting_of_a_list_and_a_recipe_file_load(tmp_path):
    config = SWAAConfig(window=7, sink_tokens=3)
    config.save(tmp_path / "mine.json")
    assert load_recipe(tmp_path / "mine.json") == load_recipe(str(tmp_path / "mine.json")) == config
    settings = [{"swaa_config": {"sliding_window_size": size}, "model_list": []} for size in (1, 2)]
    (tmp_path / "settings").write_text(json.dumps(settings))
    assert load_recipe(f"{tmp_path / 'settings'}#1") == SWAAConfig(window=2)
    (tmp_path / "copy.json").write_text(json.dumps(find_recipe("quality").to_dict()))
    assert load_recipe(tmp_path / "copy.json") == load_recipe("quality")


def test_a_shipped_name_wins_over_a_file_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SWAAConfig(window=7).save("fast")
    assert load_recipe("fast").window == 2048
    assert load_recipe("./fast").window == 7


def test_resolve_takes_whatever_names_a_configuration():
    config = load_recipe("quality")
    assert resolve(config) is config
    assert resolve(find_recipe("quality")) == resolve("quality") == resolve(config.to_dict())
    assert resolve({"sliding_window_size": 5, "keep_first": 2}).sink_tokens == 2


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("balancd", ValueError, r"unknown recipe 'balancd'; did you mean 'balanced'\? Give one of"),
        ("zzz", ValueError, r"unknown recipe 'zzz'\. Give one of .*fast.* or a path to a JSON"),
        ("here/none.json", FileNotFoundError, "no recipe file here/none.json; give a JSON file"),
        ("none.json#3", FileNotFoundError, "no recipe file none.json;"),
        ("a" * 300, ValueError, "unknown recipe 'a+...a+'"),
        ("b/" + "a" * 300, FileNotFoundError, "no recipe file b/a+...a+; give a JSON file"),
        ("", ValueError, "unknown recipe ''"),
        (7, TypeError, "expected the name of a recipe or a path, got 7"),
    ],
)
def test_what_names_nothing_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        resolve(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is not JSON that can be read: "),
        ('{"window": ' * 100_000, "is not JSON that can be read: "),
        ("[" * 900 + "]" * 900, "expected a JSON object with the key 'window', got "),
        ('{"window": ' + "9" * 5000 + "}", "is not JSON that can be read: "),
        ('{"window": ' + "[" * 400 + "]" * 400 + "}", r"window is \[.*; expected a whole number"),
        ("\x00", "is not JSON that can be read: "),
    ],
    ids=["lists", "objects", "shallow", "digits", "value", "byte"],
)
def test_hostile_files_are_refused_in_a_line(tmp_path, text, message):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(tmp_path / "recipe.json")
    assert str(caught.value).startswith(f"{tmp_path}/recipe.json")
    assert len(str(caught.value)) < 600
