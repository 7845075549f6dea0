"""Every feature of the scheduler against the judge, for every kind of KV memory."""

import random

import pytest

from swaa.config import SWAAConfig
from tests.served import Judge, prompts_of
from tests.sglang.conftest import ON_GPU
from tests.sglang.engine import CHUNK, Engine

CONFIGS = {
    "sliding": SWAAConfig(window=24, sink_tokens=4, full_layers=(1,)),
    "every_layer": SWAAConfig(window=24, sink_tokens=4),
    "full_decode": SWAAConfig(window=24, sink_tokens=4, full_decode=True, dense_tail=8),
    "all_kinds": SWAAConfig(
        window=24, sink_tokens=4, full_layers=(1,), full_decode=(2,), dense_tail=8
    ),
}
CASES = {
    "sliding": ("sliding", {}, {"poison": True, "staged": not ON_GPU}),
    "every_layer": ("every_layer", {}, {"poison": True}),
    "full_decode": ("full_decode", {}, {}),
    "all_kinds": ("all_kinds", {}, {"poison": True}),
    "pages": ("all_kinds", {"page_size": 16}, {"poison": True, "staged": not ON_GPU}),
    "plain": (
        "all_kinds",
        {"disable_radix_cache": True, "disable_overlap_schedule": True},
        {"poison": True},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, checkpoint):
    """An engine and its judge, one for all tests of a case."""
    name, options, inside = CASES[request.param]
    family = "llama" if request.param == "pages" else "qwen3"
    with Engine(checkpoint(family), CONFIGS[name].to_dict(), inside, **options) as engine:
        engine.page = options.get("page_size", 1)
        engine.shares = not options.get("disable_radix_cache", False)
        yield engine, Judge(checkpoint(family), CONFIGS[name])


@pytest.fixture
def engine(case):
    case[0].forget()
    return case[0]


@pytest.fixture
def judge(case):
    return case[1]


def test_mixed_batch(engine, judge):
    prompts = prompts_of(5, 300, 33, 129, 70)
    for prompt, answer in zip(prompts, engine.answers(prompts), strict=True):
        judge.check(prompt, answer)
    batches = engine.batches()
    chunks = [batch for batch in batches if batch["mode"] != "DECODE"]
    assert all(sum(batch["rows"]) <= CHUNK for batch in chunks)
    assert {length for batch in chunks for length in batch["prompts"]} == {5, 300, 33, 129, 70}
    assert any(any(batch["gathered"]) for batch in chunks) != ON_GPU  # chunks are short there
    assert any(not all(batch["gathered"]) for batch in chunks)


def test_the_judge_tells_configurations_apart(engine, judge):
    (prompt,) = prompts_of(200, seed=2)
    answer = engine.answers([prompt])[0]
    for other in CONFIGS.values():
        if other != judge.config:
            with pytest.raises(AssertionError):
                judge.under(other).check(prompt, answer)


@pytest.mark.parametrize("length", [CHUNK + 1, 3 * CHUNK + 1, 4 * CHUNK, 1])
def test_chunked_prefill_whatever_the_last_chunk(engine, judge, length):
    (prompt,) = prompts_of(length, seed=length)
    judge.check(prompt, engine.answers([prompt])[0])


def test_several_answers_to_one_prompt(engine, judge):
    (prompt,) = prompts_of(140, seed=3)
    answers = engine.answers([prompt], n=3, temperature=1.0)
    assert len({tuple(answer.token_ids) for answer in answers}) == 3
    for answer in answers:
        judge.check(prompt, answer, greedy=False)


def test_prefix_cache_repeats_extends_and_cuts(engine, judge):
    base, more = prompts_of(260, 90, seed=5)
    cached = []
    for prompt in (base, base, base + more, base[:150], base[:128]):
        answer = engine.answers([prompt])[0]
        judge.check(prompt, answer)
        cached.append(answer.cached)
        assert answer.cached <= max(0, len(prompt) - max(1, judge.config.dense_tail))
    assert cached[0] == 0
    if engine.shares:
        published = (260 - max(1, judge.config.dense_tail)) // engine.page * engine.page
        assert cached[1] == cached[2] == published or not judge.config.dense_tail
        assert 0 < cached[1] <= published


def test_second_turn(engine, judge):
    prompt, question = prompts_of(200, 40, seed=6)
    answer = engine.answers([prompt], max_tokens=70)[0]
    turn = [*prompt, *answer.token_ids, *question]
    second = engine.answers([turn])[0]
    judge.check(turn, second)
    phased = judge.config.full_decode or judge.config.dense_tail
    assert second.cached <= (200 - judge.config.dense_tail if phased else 270)
    if engine.shares:
        assert second.cached > 0


def test_long_answers_outlive_the_window(engine, judge):
    prompts = prompts_of(90, 10, seed=7)
    for prompt, answer in zip(prompts, engine.answers(prompts, max_tokens=100), strict=True):
        judge.check(prompt, answer)


def test_random_traffic(engine, judge):
    chosen = random.Random(0)
    bases = prompts_of(*[chosen.randint(1, 200) for _ in range(6)], seed=9)
    prompts = []
    for number in range(16):
        base = chosen.choice(bases)
        cut = base[: chosen.randint(1, len(base))] if chosen.random() < 0.5 else base
        prompts.append(cut + prompts_of(chosen.randint(1, 60), seed=100 + number)[0])
    for first in range(0, 16, 8):
        some = prompts[first : first + 8]
        answers = engine.answers(some, max_tokens=chosen.randint(5, 40))
        for prompt, answer in zip(some, answers, strict=True):
            judge.check(prompt, answer)
