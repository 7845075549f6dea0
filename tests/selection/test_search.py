import itertools
from fractions import Fraction

import pytest
from transformers import LlamaConfig

from swaa.config import SWAAConfig
from swaa.selection.batches import Scores
from swaa.selection.board import Board, mean
from swaa.selection.budget import Budget, Prices
from swaa.selection.candidate import Candidate
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
    """A landscape instead of a model: sets of layers have a value, and measuring is counted.

    Full layers may have another value where only the last rows see everything.
    """

    def __init__(self, value, screened=None):
        self.able, self.depth = tuple(range(LAYERS)), LAYERS
        self.kv_heads = [2] * LAYERS
        self._value, self._screened = value, screened or value
        self.asked = 0
        self.whole = []

    def measure(self, reference, candidates, *, kl):
        self.asked += len(candidates)
        for plans in candidates:
            layers = {i for i, plan in enumerate(plans) if plan.keeps_all_keys}
            if any(plan.dense_tail for plan in plans):
                yield Scores([self._screened(layers)], [0.0], [False])
                continue
            self.whole.append(frozenset(i for i, plan in enumerate(plans) if plan.full))
            yield Scores([self._value(layers)], [0.0], [False])


class FakeFile:
    samples = ()

    def append(self, record):
        pass


def _board(value, screened=None):
    return Board(FakePasses(value, screened), FakeFile())


def _search(value, budget, role="full", **effort):
    board = _board(value)
    search = Search(board, PRICES, Budget.parse(budget), KNOBS, role, Effort(**effort))
    return search.run(), board.passes


def _pairs_only(layers):
    """Layers 4 and 9 help only together; no single layer shows it; 2 helps a little alone."""
    return 3 - 2 * ({4, 9} <= layers) - 0.1 * (2 in layers)


def test_layers_that_help_only_together_are_found():
    found, _ = _search(_pairs_only, "layers=1/4")
    assert {4, 9} <= found.best.full
    assert found.value == pytest.approx(0.9)


def _missed(layers):
    """4 and 9 are missed where nearly all layers are there; among few, others look better."""
    if layers == {4, 9}:
        return 0.0
    if len(layers) >= LAYERS - 1:
        return 1.0 + len({4, 9} - layers)
    return 3.0 + 0.2 * len(layers & {4, 9}) - 0.1 * len(layers & {0, 6, 7})


@pytest.mark.parametrize("role", ["full", "decode"])
def test_a_pair_is_found_that_only_leave_one_out_shows(role):
    found, _ = _search(_missed, "decode=1/6", role)
    assert found.best.layers(role) == {4, 9}
    assert found.best == found.starts["leave-one-out, nll"]


def test_a_pair_that_the_last_rows_do_not_show_is_found_at_a_pass_a_layer():
    boards = [_board(_missed, lambda layers: 3.0 - 0.1 * len(layers & {0, 6, 7})) for _ in range(2)]
    found = [
        Search(board, PRICES, Budget.parse("layers=1/6"), KNOBS, "full", Effort(**effort)).run()
        for board, effort in zip(boards, ({}, {"leave_one_out": False}), strict=True)
    ]
    assert found[0].best.full == {4, 9}
    assert found[1].best.full != {4, 9}
    more, less = (set(board.passes.whole) for board in boards)
    flipped = {frozenset(range(LAYERS)) - {layer} for layer in range(LAYERS)}
    assert flipped <= more
    assert not flipped & less


def test_swaps_that_the_last_rows_propose_are_judged_on_whole_prompts():
    def value(layers):
        return 3.0 - len(layers & {2, 5, 8})

    def screened(layers):
        return 3.0 - len(layers & {2, 5}) - 0.3 * (8 in layers) - 0.5 * (11 in layers)

    board = _board(value, screened)
    effort = Effort(finalists=1, leave_one_out=False)
    found = Search(board, PRICES, Budget.parse("layers=1/4"), KNOBS, "full", effort).run()
    assert frozenset({2, 5, 11}) in board.passes.whole
    assert found.best.full == {2, 5, 8}


@pytest.mark.parametrize("decode", [(), range(LAYERS)])
def test_finalists_are_measured_on_whole_prompts(decode):
    board = _board(lambda layers: 5.0 - len(layers & {1, 3, 8}))
    knobs = KNOBS.with_layers("decode", decode)
    effort = Effort(leave_one_out=False, rounds=0)
    found = Search(board, PRICES, Budget.parse("layers=1/4"), knobs, "full", effort).run()
    assert len(set(board.passes.whole) - {frozenset()}) >= effort.finalists - 1
    assert found.best.decode == frozenset(decode) - found.best.full


@pytest.mark.parametrize("role", ["full", "decode"])
@pytest.mark.parametrize("seed", range(8))
def test_nothing_measured_within_the_budget_is_better_than_what_is_returned(role, seed):
    import random

    def landscape(name):
        known = {}

        def value(layers):
            chance = random.Random(f"{name} {seed} {sorted(layers)}")
            return known.setdefault(frozenset(layers), chance.random())

        return value

    budget = Budget.parse("decode=1/3")
    board = _board(landscape("whole"), landscape("last rows"))
    # What somebody else had measured: a pattern, or a search under another budget.
    others = [KNOBS.with_layers(role, {first, first + 4, first + 7}) for first in range(4)]
    board.ask(others, near=KNOBS)
    for other in ("decode=1/4", "decode=1/2"):
        Search(board, PRICES, Budget.parse(other), KNOBS, role, Effort()).run()
    search = Search(board, PRICES, budget, KNOBS, role, Effort(gain=0.1))
    found = search.run()
    within = [c for c in board.asked if budget.allows(PRICES.of(c))]
    assert found.value == min(map(board.value, within))
    assert board.value(found.best) == found.value


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
    passes = []
    second = make_board(samples, name="kept", on_pass=passes.append)
    second.ask([knobs, knobs.with_layers("full", {1})], near=knobs)
    assert second.full_scores() == first.full_scores()
    assert passes == []
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
        ("kv=150%", "'150%' is not a share from 0 to 1"),
        ("kv=1/0", "is not a share"),
        ("layers=many", "is not a share"),
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
