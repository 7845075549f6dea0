"""Selected rows in vLLM against the adapted Transformers model, its prompt cut alike."""

import dataclasses
import functools

import pytest

from swaa.config import LayerPlan, SWAAConfig
from tests.vllm.engine import Engine, Judge, generating_judge, prompts_of

CONFIG = SWAAConfig(
    window=40,
    sink_tokens=4,
    full_decode=(0,),
    dense_tail=8,
    selected_layers=(1, 2),
    selected_keys=64,
)
CHUNK = 128
NEW = 12
# Hits of the prefix cache end where blocks of rows do.
OPTIONS = {"block_size": 128, "max_num_batched_tokens": CHUNK, "num_gpu_blocks_override": 100}


@pytest.fixture(scope="module")
def engine(checkpoint):
    with Engine(checkpoint(), CONFIG.to_dict(), **OPTIONS) as engine:
        yield engine


@pytest.fixture(scope="module")
def judge(checkpoint):
    return functools.partial(generating_judge(checkpoint()), config=CONFIG, chunk=CHUNK)


@pytest.mark.parametrize("length", [1, 100, 129, 384, 500])
def test_prompts_in_chunks(engine, judge, length):
    (prompt,) = prompts_of(length, seed=length)
    judge(prompt, engine.answers([prompt], max_tokens=NEW)[0])


def test_a_choice_is_made(engine, judge):
    """A model that slides in the same layers answers otherwise."""
    (prompt,) = prompts_of(500, seed=500)
    answer = engine.answers([prompt], max_tokens=NEW)[0]
    plain = dataclasses.replace(CONFIG, selected_layers=(), selected_keys=0, full_decode=(0, 1, 2))
    assert plain.layers(4)[1] == LayerPlan(window=40, sink_tokens=4, full_decode=True, dense_tail=8)
    folder = engine.llm.llm_engine.model_config.model
    with pytest.raises(AssertionError):
        Judge(folder, plain).check(prompt, answer)


def test_a_prompt_beside_requests_that_generate(engine, judge):
    short, long = prompts_of(30, 470, seed=3)
    answers = engine.one_after_another([short, long], max_tokens=NEW)
    judge(short, answers[0])
    judge(long, answers[1], chunk=CHUNK - 1)  # the other request has a row in every step
    assert engine.free_blocks() == engine.free_at_start


def test_a_prefix_that_is_cached(engine, judge):
    base, more = prompts_of(300, 200, seed=4)
    engine.answers([base], max_tokens=2)
    output = engine.run([base + more], max_tokens=NEW)[0]
    assert output.num_cached_tokens == 256
    judge(base + more, output.outputs[0])
