from fractions import Fraction

import pytest

from swaa.selection.candidate import Candidate
from swaa.selection.signals import SIGNALS, rank, top
from swaa.selection.signals.flips import importance
from swaa.selection.signals.periodic import blocks, patterns
from tests.selection.conftest import DEPTH, teacher_forced

EVERY = frozenset(range(DEPTH))
KNOBS = Candidate(window=8, sink_tokens=2, decode=EVERY)


def test_patterns_of_a_quarter_of_thirty_layers():
    found = patterns(range(30), Fraction(1, 4))
    assert found["every:4+3"] == (3, 7, 11, 15, 19, 23, 27)
    assert {len(layers) for layers in found.values()} == {7, 8}
    assert found["middle:1/4"] == tuple(range(11, 19))
    assert sorted(found) == [
        "every:4+0",
        "every:4+1",
        "every:4+2",
        "every:4+3",
        "first:1/4",
        "last:1/4",
        "middle:1/4",
    ]


def test_patterns_name_layers_that_can_slide_only():
    able = (3, 7, 11, 15)
    assert patterns(able, Fraction(1, 2))["odd"] == (7, 15)
    assert patterns(able, Fraction(1, 2))["even"] == (3, 11)


def test_blocks_reach_the_last_layer():
    assert blocks(range(10), 4, step=3) == [(0, 1, 2, 3), (3, 4, 5, 6), (6, 7, 8, 9)]
    assert blocks(range(9), 4, step=3)[-1] == (5, 6, 7, 8)


def test_the_first_of_a_ranking_are_the_most_important():
    assert list(rank({0: 0.5, 1: 0.5, 2: 0.9})) == [2, 1, 0]
    assert top({0: 0.5, 1: 0.5, 2: 0.9}, 2) == (1, 2)


@pytest.mark.parametrize("objective", ["nll", "kl"])
@pytest.mark.parametrize("role", ["full", "decode"])
@pytest.mark.parametrize("direction", ["add-one", "leave-one-out"])
def test_importance_is_the_difference_that_one_layer_makes(make_board, role, objective, direction):
    board = make_board(teacher_forced(60, 51))
    knobs = KNOBS if role == "full" else KNOBS.with_layers("decode", ())
    found = importance(board, knobs, role, objective, direction)
    for layer in range(DEPTH):
        adding = direction == "add-one"
        without = knobs.with_layers(role, () if adding else EVERY - {layer})
        having = knobs.with_layers(role, {layer} if adding else EVERY)
        alone = make_board(teacher_forced(60, 51))
        alone.ask([without, having], near=without)
        means = [sum(getattr(alone.scores(c), objective)) / 2 for c in (without, having)]
        assert found[layer] == pytest.approx(means[0] - means[1], abs=1e-5)


def test_a_flipped_layer_is_one_pass_and_signals_share_them(make_board):
    passes = []
    board = make_board(teacher_forced(60), on_pass=passes.append)
    importance(board, KNOBS, "full", "nll", "add-one")
    assert len(passes) == DEPTH + 1
    importance(board, KNOBS, "full", "kl", "add-one")
    assert len(passes) == DEPTH + 1
    importance(board, KNOBS, "full", "nll", "leave-one-out")
    assert len(passes) == 2 * DEPTH + 2


def test_signals_are_listed():
    assert {"answer_nll", "kl", "lazy_ratio"} <= set(SIGNALS)
