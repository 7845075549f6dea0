"""Names of settings in the tables of swaa eval."""

import dataclasses
from types import SimpleNamespace

import pytest

from swaa.cli.eval_tables import label
from swaa.recipes import resolve
from tests.evaluation.fakes import make_run

KNOBS = {
    "window=512": {"window": 512},
    "full_layers=1,3": {"full_layers": (1, 3)},
    "full_decode=none": {"full_decode": False},
    "full_decode=14:0": {"full_decode": {"14": [0]}},
    "dense_tail=0": {"dense_tail": 0},
    "selected_layers=all selected_keys=64": {"selected_layers": "all", "selected_keys": 64},
    "decode_keys=1024": {"decode_keys": 1024},
}


@pytest.mark.parametrize("words", KNOBS)
def test_a_label_names_the_knobs_that_change_a_recipe(words):
    config = dataclasses.replace(resolve("fast"), **KNOBS[words])
    assert _label("fast", config) == f"fast {words}"


def test_knobs_that_are_taken_away_are_named():
    config = dataclasses.replace(resolve("selected"), selected_layers=(), selected_keys=0)
    assert _label("selected", config) == "selected selected_layers=none selected_keys=0"


def test_a_file_and_a_recipe_as_it_is_have_their_name_alone():
    assert _label("selected", resolve("selected")) == "selected"
    assert _label("mine.json", resolve("fast")) == "mine.json"


def _label(setting, config):
    return label(SimpleNamespace(run=make_run(None, setting=setting, config=config)))
