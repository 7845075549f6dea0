import itertools
from fractions import Fraction

import pytest
from transformers import LlamaConfig

from swaa.config import SWAAConfig
from swaa.selection.board import mean
from swaa.selection.budget import Budget, Prices
from swaa.selection.candidate import Candidate
from swaa.selection.passes import Scores
from swaa.selection.search import Effort, Search
from swaa.shapes import shape_of
from tests.selection.conftest import DEPTH, teacher_forced

LAYERS = 12
KNOBS = Candidate(window=512, sink_tokens=16)
SHAPE = shape_of(
    LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
)
PRICES = Prices(SHAPE, tuple(range(LAYERS)), 4096)


class FakePasses:
    """A landscape instead of a model: sets of layers have a value, and measuring is counted."""

    def __init__(self, value):
        self.able, self.depth = tuple(range(LAYERS)), LAYERS
        self._value = value
        self.asked = 0

    def measure(self, reference, candidates, *, kl):
        self.asked += len(candidates)
        for plans in candidates:
            layers = {i for i, plan in enumerate(plans) if plan.keeps_all_keys}
            yield Scores([self._value(layers)], [0.0], [False])


class FakeFile:
    samples = ()

    def append(self, record):
        pass


def _search(value, budget, role="full", **effort):
    from swaa.selection.board import Board

    passes = FakePasses(value)
    board = Board(passes, FakeFile())
    search = Search(board, PRICES, Budget.parse(budget), KNOBS, role, Effort(**effort))
    return search.run(), passes


def _pairs_only(layers):
    """Layers 4 and 9 help only together; no single layer shows it; 2 helps a little alone."""
    return 3 - 2 * ({4, 9} <= layers) - 0.1 * (2 in layers)


def test_layers_that_help_only_together_are_found():
    found, _ = _search(_pairs_only, "layers=1/4")
    assert {4, 9} <= found.best.full
    assert found.value == pytest.approx(0.9)


def test_a_contiguous_block_is_found():
    found, _ = _search(lambda layers: 5.0 - 4 * ({5, 6, 7} <= layers), "layers=1/4")
    assert found.best.full == {5, 6, 7}


@pytest.mark.parametrize("seed", range(5))
def test_a_small_space_is_searched_as_well_as_by_trying_every_set(seed):
    import random

    chance = random.Random(seed)
    single = [chance.random() for _ in range(LAYERS)]
    both = {pair: chance.gauss(0, 0.5) for pair in itertools.combinations(range(LAYERS), 2)}

    def value(layers):
        pairs = itertools.combinations(sorted(layers), 2)
        return 9 - sum(single[i] for i in layers) - sum(both[pair] for pair in pairs)

    found, passes = _search(value, "layers=1/3", gain=0.0)
    sets = [set(s) for n in range(5) for s in itertools.combinations(range(LAYERS), n)]
    ranked = sorted(map(value, sets))
    assert found.value <= ranked[max(1, len(ranked) // 100)], "not among the best hundredth"
    assert passes.asked < len(sets) / 2


@pytest.mark.parametrize("role", ["full", "decode"])
@pytest.mark.parametrize("budget", ["layers=1/4", "kv=50%", "flops=0.8,kv=60%", "decode=1/3"])
def test_what_is_found_is_within_the_budget(role, budget):
    bounds = Budget.parse(budget)
    found, _ = _search(lambda layers: 5.0 - len(layers), budget, role)
    assert bounds.allows(PRICES.of(found.best))
    more = [found.best.with_layers(role, found.best.layers(role) | {i}) for i in range(LAYERS)]
    bigger = [c for c in more if c != found.best]
    if role == "full" or "kv" in budget or "decode" in budget:
        assert bigger
        assert not any(bounds.allows(PRICES.of(c)) for c in bigger), "budget left unspent"


def test_a_layer_that_does_harm_is_not_taken():
    found, _ = _search(lambda layers: 1.0 + len(layers - {3}) - (3 in layers) / 2, "layers=1/4")
    assert found.best.full == {3}


def test_a_budget_below_the_cost_of_no_layer_is_refused():
    with pytest.raises(ValueError, match=r"budget kv=1/100 cannot be met: with window 512.*kv=0\."):
        _search(lambda layers: 1.0, "kv=1/100")


@pytest.mark.parametrize("screen", [0, 10])
def test_a_search_is_deterministic_and_its_sets_are_measured_as_sets(make_board, screen):
    samples = teacher_forced(60, 75)
    able = tuple(range(DEPTH))
    shape = shape_of(LlamaConfig(num_hidden_layers=DEPTH))
    prices = Prices(shape, able, 60)
    knobs = Candidate(window=8, sink_tokens=2)
    budget = Budget(layers=Fraction(1, 2))
    boards = [make_board(samples) for _ in range(2)]
    effort = Effort(screen=screen)
    runs = [Search(board, prices, budget, knobs, "full", effort).run() for board in boards]
    assert runs[0].best == runs[1].best
    every = [
        knobs.with_layers("full", s) for n in range(3) for s in itertools.combinations(able, n)
    ]
    fresh = make_board(samples)
    fresh.ask(every, near=knobs)
    assert runs[0].value == pytest.approx(fresh.value(runs[0].best), abs=1e-5)
    assert runs[0].value <= sorted(map(fresh.value, every))[1] + 1e-5


def test_an_interrupted_search_measures_nothing_twice(make_board):
    samples = teacher_forced(60)
    knobs = Candidate(window=8, sink_tokens=2)
    first = make_board(samples, name="kept")
    first.ask([knobs, knobs.with_layers("full", {1})], near=knobs)
    first.full_scores()
    first.file.__exit__(None, None, None)
    second = make_board(samples, name="kept")
    second.ask([knobs, knobs.with_layers("full", {1})], near=knobs)
    assert second.full_scores() == first.full_scores()
    assert second.measured == 0
    assert second.value(knobs) == first.value(knobs)


def test_candidates_that_do_the_same_are_equal():
    one = Candidate(window=8, full={1}, decode={1, 2})
    assert one == Candidate(window=8, full={1}, decode={2})
    assert one.key == Candidate(window=8, full={1}, decode={2}).key
    assert one.key != Candidate(window=8, full={1}).key
    config = Candidate(window=8, full={0}, decode={1, 2, 3}).config(range(4))
    assert config == SWAAConfig(window=8, full_layers=(0,), full_decode=True)
    assert Candidate.of(config, range(4), 4) == Candidate(window=8, full={0}, decode={1, 2, 3})


def test_a_search_does_not_begin_at_full_attention():
    with pytest.raises(ValueError, match="the recipe is full attention; give one with a window"):
        Candidate.of(SWAAConfig(window=None), range(4), 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer=1/4", "expected layers=SHARE, decode=SHARE, flops=SHARE, kv=SHARE"),
        ("layers=1/4,layers=1/2", "each at most once"),
        ("kv=150%", "'150%' is no share from 0 to 1"),
        ("kv=1/0", "is no share"),
        ("layers=many", "is no share"),
    ],
)
def test_budgets_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Budget.parse(text)


def test_budgets_read_as_typed():
    assert Budget.parse("kv=50%, layers=0") == Budget(kv=Fraction(1, 2), layers=Fraction(0))
    assert str(Budget.parse("layers=1/4,flops=0.5")) == "layers=1/4,flops=1/2"
    assert Budget.parse("layers=1/4").whole_layers(30).layers == Fraction(8, 30)


def test_prices_are_those_of_the_plan():
    from swaa.plan import price

    candidate = KNOBS.with_layers("decode", {3, 4, 5})
    ratios = price(SHAPE, candidate.config(range(LAYERS)), prompt_length=4096).ratios()
    assert PRICES.of(candidate) == (0, 0.25, ratios["prefill_flops"], ratios["kv_steady_bytes"])
    assert mean([1.0, 2.0]) == 1.5
