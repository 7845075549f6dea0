"""Choosing KV heads: the signal against plain attention, candidates, searches, `swaa tune`."""

import itertools
import json
from fractions import Fraction

import pytest
import torch

from swaa.cli import main
from swaa.config import SWAAConfig
from swaa.heads import HeadSelection
from swaa.integrations.transformers.support import find_layers, kv_heads_of
from swaa.plan import price
from swaa.selection.budget import Budget, Prices
from swaa.selection.candidate import Candidate
from swaa.selection.search import Search
from swaa.selection.signals import top
from swaa.selection.signals.flips import importance
from swaa.selection.signals.lazy_ratio import head_attention
from swaa.selection.spaces import spaces
from swaa.selection.tuning import check_method
from swaa.shapes import shape_of
from tests.selection.conftest import DEPTH, teacher_forced

ABLE = tuple(range(DEPTH))
KV_HEADS = [2] * DEPTH
BASE = Candidate(window=16, sink_tokens=2, dense_tail=4)


def by_weights(loaded, samples, window, sinks):
    """The signal from eager attention's whole matrices."""
    totals = {}
    loaded.model.set_attn_implementation("eager")
    for sample in samples:
        ids = torch.tensor([sample.prompt + sample.answer])
        with torch.no_grad():
            found = loaded.model(ids, output_attentions=True).attentions
        rows = torch.arange(ids.shape[1])
        far = (rows[None] <= rows[:, None] - window) & (rows[None] >= sinks)
        for layer, weights in enumerate(found):
            share = (weights[0] * far)[:, -len(sample.answer) - 1 :].sum(-1).mean(-1)
            for head in range(2):
                own = share[2 * head : 2 * head + 2]
                totals.setdefault((layer, head), []).append(own)
    return {key: float(torch.stack(own).mean(0).max()) for key, own in totals.items()}


@pytest.mark.parametrize("block", [7, 4096])
def test_the_signal_is_the_share_of_attention_that_sliding_loses(loaded, block, monkeypatch):
    monkeypatch.setattr("swaa.selection.signals.lazy_ratio._BLOCK", block)
    samples = teacher_forced(50, 61, 40)
    found = head_attention(loaded, samples, window=9, sink_tokens=2)
    expected = by_weights(loaded, samples, 9, 2)
    assert found.keys() == expected.keys()
    for key, share in expected.items():
        assert found[key] == pytest.approx(share, abs=1e-5)
    assert len({round(share, 3) for share in found.values()}) > DEPTH


def test_candidates_of_heads():
    candidate = BASE.with_layers("heads", [(1, 0), (3, 1), (1, 1)])
    config = candidate.config(ABLE)
    assert config.full_decode == HeadSelection(((1, (0, 1)), (3, (1,))))
    assert Candidate.of(config, ABLE, DEPTH, KV_HEADS) == candidate
    plans = candidate.plans(ABLE, DEPTH, KV_HEADS)
    assert [plan.full_decode for plan in plans] == [False, True, False, False]
    assert plans[3].decode_heads == (1,)
    assert candidate.key != BASE.key
    assert candidate.with_layers("heads", ()).key == BASE.key
    full = candidate.with_layers("full", [1])
    assert full.heads == {(3, 1)}


def test_prices_of_heads(loaded):
    shape = shape_of(loaded.model.config)
    prices = Prices(shape, ABLE, 200)
    some = BASE.with_layers("heads", [(0, 0), (2, 1), (2, 0)])
    cost = prices.of(some)
    ratios = price(shape, some.config(ABLE), prompt_length=200).ratios()
    assert cost.kv == ratios["kv_steady_bytes"]
    assert cost.kv == pytest.approx(3 / 8 + 5 / 8 * 18 / 200)
    assert cost.decode == pytest.approx(1.5 / 4)
    whole = BASE.with_layers("heads", itertools.product(ABLE, range(2)))
    assert prices.of(whole) == prices.of(BASE.with_layers("decode", ABLE))


def test_budgets_buy_heads():
    base = Candidate(window=16, decode=frozenset(ABLE))
    budget = Budget.parse("kv=1/2")
    roles = {unit: [s.role for s in spaces(base, {}, budget, unit)] for unit in ("heads", "both")}
    assert roles == {"heads": ["heads"], "both": ["heads", "decode", "full"]}
    assert all(not space.knobs.decode for space in spaces(base, {}, budget, "heads"))


def test_a_search_swaps_to_better_heads(make_board, loaded):
    board = make_board(teacher_forced(70, 80, 90), objective="kl")
    prices = Prices(shape_of(loaded.model.config), ABLE, 80)
    budget = Budget(kv=Fraction(6, 10))
    worst = {head: -float(i) for i, head in enumerate(board.units("heads"))}
    search = Search(board, prices, budget, BASE, "heads", ranked=worst)
    count = search.capacity()
    assert 2 <= count < 2 * DEPTH
    start = BASE.with_layers("heads", top(worst, count))
    found = search.run()
    assert budget.allows(prices.of(found.best))
    assert board.value(found.best) < board.value(start)
    measured = [c for c in search.measured() if len(c.heads) == count]
    assert found.best in search.measured()
    assert board.value(found.best) <= min(map(board.value, measured))
    alone = importance(board, BASE, "heads", "kl", "leave-one-out")
    assert set(alone) == set(board.units("heads"))
    # Heads add up to layers: both heads of all layers are full decode everywhere.
    everything = BASE.with_layers("heads", board.units("heads"))
    layers = BASE.with_layers("decode", ABLE)
    board.ask([everything, layers], near=BASE)
    assert board.scores(everything) == board.scores(layers)


def test_wrong_methods_for_a_unit():
    for method, units, message in (
        ("far_attention", "heads", "ranks layers, not KV heads"),
        ("lazy_ratio", "both", "ranks layers, not KV heads"),
        ("head_attention", "layers", "give --unit heads too"),
        ("head_attention", "both", "give --unit heads too"),
    ):
        with pytest.raises(ValueError, match=message):
            check_method(method, units)
    check_method("head_attention", "heads")
    check_method("kl_out", "both")


@pytest.mark.parametrize("method", ["head_attention", "search"])
def test_tune_chooses_heads_within_the_budget_and_compares_layers(
    method, checkpoint, tmp_path, capsys, kept_rows, words
):
    more = ["--unit", "heads", "--budget", "kv=97%", "--baselines", "far_attention"]
    asked = words(*more, "--method", method)
    assert main(asked) == 0
    rows = {row["recipe"]: row for row in kept_rows()}
    tuned, layers = rows["tuned kv=97of100"], rows["far_attention kv=97of100"]
    assert tuned["kv_bytes"] <= 0.97
    assert layers["kv_bytes"] <= 0.97
    assert isinstance(tuned["swaa"]["full_decode"], dict)
    assert isinstance(layers["swaa"]["full_decode"], list)
    config = SWAAConfig.load(tmp_path / "tuned.json")
    assert isinstance(config.full_decode, HeadSelection)
    out = capsys.readouterr()
    assert "full decode in KV heads" in out.out
    assert "sets of KV heads to measure" in out.err
    recipe = json.loads((tmp_path / "tuned.json").read_text())
    assert f"swaa tune, KV heads, method {method}" in recipe["provenance"]["source"]
    (tmp_path / "report.txt").write_text("the river runs " * 20)
    ask = ["--file", str(tmp_path / "report.txt"), "--question", "What?", "--max-new-tokens", "2"]
    assert main(["generate", str(checkpoint), "--recipe", str(tmp_path / "tuned.json"), *ask]) == 0


def test_a_choice_without_a_report_takes_no_answers(tmp_path, capsys, refusal, prints, words):
    more = ["--unit", "heads", "--method", "head_attention", "--held-out", "0"]
    asked = words(*more, "--baselines", "far_attention")
    assert main([*asked, "--budget", "kv=97%"]) == 0
    out = capsys.readouterr()
    assert "tuned kv=97of100" in out.out
    assert "far_attention kv=97of100" in out.out
    assert "nothing was held out" in out.err
    recipe = json.loads((tmp_path / "tuned.json").read_text())
    assert ": not verified, at " in recipe["description"]
    assert "no score says what it keeps" in recipe["provenance"]["source"]
    assert isinstance(SWAAConfig.load(tmp_path / "tuned.json").full_decode, HeadSelection)
    assert not list((tmp_path / "results").glob("eval/*"))
    assert (
        json.loads(prints(*asked, "--budget", "kv=97%", "--json"))["recipe"]["config"]
        == recipe["config"]
    )
    assert "give one --budget" in refusal(*asked)


def test_tune_prints_both_units(kept_rows, words):
    more = ["--unit", "both", "--budget", "layers=0,kv=97%"]
    assert main(words(*more)) == 0
    rows = {row["recipe"]: row for row in kept_rows()}
    assert {"heads layers=0,kv=97of100", "layers layers=0,kv=97of100"} <= {
        name for row in rows.values() for name in (row["recipe"], *row["also"])
    }


def test_a_budget_that_buys_no_heads(refusal, words):
    asked = words("--unit", "heads", "--budget", "layers=1/2")
    assert "the budget layers=1/2 buys no KV heads" in refusal(*asked)


def test_kv_heads_of_a_model(loaded):
    assert kv_heads_of(loaded.model, find_layers(loaded.model)) == KV_HEADS
