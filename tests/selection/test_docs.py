"""The tables of docs/tuning.md are those that the scores make."""

import json
from pathlib import Path

import pytest

from swaa.selection.tables import fill, ranges, scored_sets

ROOT = Path(__file__).parents[2]
SCORES = "results/tune/smollm2-135m-instruct.q4-1.gguf-multikey-scores-718de83b.jsonl"


@pytest.fixture(scope="module")
def records():
    return [json.loads(line) for line in (ROOT / SCORES).read_text().splitlines()]


def test_the_tables_are_those_of_the_scores(records):
    text = (ROOT / "docs/tuning.md").read_text(encoding="utf-8")
    assert text.count("<!-- ") == 3
    assert fill(text, records) == text
    assert SCORES in text


def _record(decode, nll, **more):
    values = {"window": 8, "dense_tail": 0, "full": [], "decode": decode}
    return {"id": f"{decode}", **values, "nll": [nll], "kl": [nll / 2], "exact": [True], **more}


def test_a_table_shows_the_best_set_and_the_best_block_of_each_size():
    scored = [
        {"id": "full", "nll": [0.1], "kl": [0.0], "exact": [True]},
        _record([1, 2], 0.9),
        _record([3, 4], 0.7),
        _record([1, 4], 0.5),
        _record([1, 5], 0.2, window=16),
        _record([1, 5], 0.1, full=[0]),
    ]
    table = scored_sets(scored, "decode", window=8, dense_tail=0, counts=[2]).splitlines()
    assert table[2] == "| all | full attention | 0.100 | 0.000 | 1 of 1 |  |  |  |"
    assert table[3] == "| 2 | 1, 4 | 0.500 | 0.250 | 1 of 1 | 3-4 | 0.700 | 0.350 |"


def test_layers_are_shown_as_ranges():
    assert ranges([]) == ""
    assert ranges([3, 1, 2, 9]) == "1-3, 9"
