"""Every feature of the scheduler against the judge, for every kind of KV memory."""

import contextlib

import pytest

from swaa.config import SWAAConfig
from swaa.integrations.refusal import UnsupportedError
from tests.vllm.engine import BLOCK, CHUNK, Engine, Judge, folder_for, prompts_of, sampling

HEADS = {"0": [1], "1": [0, 3], "2": [1, 2, 3]}
CONFIGS = {
    "sliding": SWAAConfig(window=24, sink_tokens=4, full_layers=(1,)),
    "large_sinks": SWAAConfig(window=20, sink_tokens=40),
    "full_decode": SWAAConfig(window=24, sink_tokens=4, full_decode=True, dense_tail=8),
    "tail": SWAAConfig(window=24, sink_tokens=4, dense_tail=8),
    "all_kinds": SWAAConfig(
        window=24, sink_tokens=4, full_layers=(1,), full_decode=(2,), dense_tail=8
    ),
    "heads": SWAAConfig(window=24, sink_tokens=4, full_decode=HEADS),
    "heads_tail": SWAAConfig(
        window=24, sink_tokens=4, full_layers=(1,), full_decode=HEADS, dense_tail=8
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def case(request, checkpoint):
    """An engine and its judge, one for all tests of a configuration."""
    config = CONFIGS[request.param]
    folder = folder_for(checkpoint, config)
    with Engine(folder, config.to_dict()) as engine:
        yield engine, Judge(folder, config)


def test_mixed_batch(engine, judge):
    prompts = prompts_of(5, 300, 33, 129, 70)
    for prompt, answer in zip(prompts, engine.answers(prompts), strict=True):
        judge.check(prompt, answer)


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
    output = engine.run([prompt], n=3, temperature=1.0)[0]
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 3
    for answer in output.outputs:
        judge.check(prompt, answer, greedy=False)


def test_prefix_cache_repeats_extends_and_cuts(engine, judge):
    base, more = prompts_of(260, 90, seed=5)
    # Itself, a longer one, one that ends within what is cached, and one that ends at a block.
    prompts = [base, base, base + more, base[:150], base[: 4 * BLOCK]]
    cached = []
    for prompt in prompts:
        output = engine.run([prompt])[0]
        cached.append(output.num_cached_tokens)
        judge.check(prompt, output.outputs[0])
    tail = judge.config.dense_tail
    assert cached[0] == 0
    assert cached[1] == (260 - max(1, tail)) // BLOCK * BLOCK
    for hit, prompt in zip(cached[1:], prompts[1:], strict=True):
        assert 0 < hit <= len(prompt) - max(1, tail)


def test_second_turn(engine, judge):
    prompt, question = prompts_of(200, 40, seed=6)
    answer = engine.answers([prompt], max_tokens=70)[0]
    turn = [*prompt, *answer.token_ids, *question]
    output = engine.run([turn])[0]
    # What the first turn published: no rows of its own phase. Without phases too vLLM keeps, of a
    # sliding layer, blocks at the prompt's end only.
    published = len(prompt) - judge.config.dense_tail
    assert output.num_cached_tokens == published // BLOCK * BLOCK
    judge.check(turn, output.outputs[0])


def test_a_session_whose_prompt_grows_is_refused_under_a_dense_tail(engine, judge):
    processor = engine.llm.llm_engine.input_processor
    given = ({"prompt_token_ids": [1, 2]}, sampling(max_tokens=4), ("generate",))
    expected = contextlib.nullcontext()
    if judge.config.dense_tail:
        expected = pytest.raises(UnsupportedError, match="send the whole prompt at once")
    with expected:
        assert processor.process_inputs("session", *given, resumable=True).resumable
    assert not processor.process_inputs("plain", *given).resumable


def test_abort_in_the_middle_of_a_prompt(engine, judge):
    victim, other = prompts_of(500, 80, seed=7)
    core = engine.llm.llm_engine
    core.add_request("victim", {"prompt_token_ids": victim}, sampling(max_tokens=4))
    core.step()
    core.step()
    assert engine.free_blocks() < engine.free_at_start
    core.abort_request(["victim"])
    judge.check(other, engine.answers([other])[0])


def test_blocks_that_no_row_sees_are_freed(engine, judge):
    (prompt,) = prompts_of(700, seed=8)
    core = engine.llm.llm_engine
    core.add_request("long", {"prompt_token_ids": prompt}, sampling(max_tokens=6))
    in_prefill, steady = [], []
    while core.has_unfinished_requests():
        core.step()
        request = next(iter(engine.scheduler.requests.values()), None)
        if request is not None:
            done = request.num_computed_tokens >= len(prompt) + 3
            (steady if done else in_prefill).append(live_blocks(engine, request.request_id))
    assert engine.free_blocks() == engine.free_at_start
    kept = 1 + -(-judge.config.sink_tokens // BLOCK) + -(-judge.config.window // BLOCK)
    for kind, last in steady[-1]:
        if kind == "AllKeysSpec":  # a scheduler that runs ahead has one token more
            assert -(-704 // BLOCK) <= last <= -(-705 // BLOCK)
        else:
            assert last <= kept
    for step in in_prefill:
        for kind, live in step:
            if kind == "SinkWindowSpec":
                # No more than two chunks in flight beside what stays.
                assert live <= kept + 2 * CHUNK // BLOCK


def live_blocks(engine, request):
    """Kind and number of the blocks that a request holds, by group."""
    return [
        (
            type(manager.kv_cache_spec).__name__,
            sum(not block.is_null for block in manager.req_to_blocks[request]),
        )
        for manager in engine.manager.coordinator.single_type_managers
    ]


def test_published_answers_are_reused(checkpoint):
    swaa = {"recipe": CONFIGS["all_kinds"].to_dict(), "publish_generated": True}
    prompt, question = prompts_of(200, 40, seed=6)
    with Engine(checkpoint(), swaa) as engine:
        answer = engine.answers([prompt], max_tokens=70)[0]
        turn = [*prompt, *answer.token_ids, *question]
        hit = engine.run([turn])[0].num_cached_tokens
    assert hit == (len(prompt) + 70 - 1) // BLOCK * BLOCK


def test_nothing_is_freed_without_the_hybrid_cache_manager(checkpoint):
    config = CONFIGS["sliding"]
    (prompt,) = prompts_of(300, seed=9)
    options = {"disable_hybrid_kv_cache_manager": True}
    with Engine(checkpoint(), config.to_dict(), **options) as engine:
        answer = engine.answers([prompt])[0]
        managers = engine.manager.coordinator.single_type_managers
        kinds = [type(manager.kv_cache_spec).__name__ for manager in managers]
    assert kinds == ["AllKeysSpec"]
    Judge(checkpoint(), config).check(prompt, answer)
