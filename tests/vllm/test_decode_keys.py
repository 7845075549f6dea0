"""Generated rows that choose what they read, in vLLM against the adapted Transformers model."""

import functools
import random

import pytest
import torch

from swaa.attention.pages import PAGE
from swaa.attention.pages import page_statistics as describe
from swaa.config import SWAAConfig
from tests.vllm.engine import Engine, generating_judge, prompts_of
from tests.vllm.test_scheduling import random_requests, serve

CONFIG = SWAAConfig(
    window=24,
    sink_tokens=4,
    full_layers=(3,),
    full_decode=(0, 1),
    dense_tail=8,
    selected_layers=(1,),
    selected_keys=64,
    decode_keys=48,
)
CHUNK = 128
NEW = 20
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
    (prompt,) = prompts_of(500, seed=500)
    answer = engine.answers([prompt], max_tokens=NEW)[0]
    everything = SWAAConfig.from_dict({**CONFIG.to_dict(), "decode_keys": 0})
    with pytest.raises(AssertionError):
        judge(prompt, answer, config=everything)


def test_requests_next_to_one_another(engine, judge):
    short, long = prompts_of(90, 470, seed=3)
    answers = engine.one_after_another([short, long], max_tokens=NEW)
    judge(short, answers[0])
    judge(long, answers[1], chunk=CHUNK - 1)  # the other request has a row in every step
    assert engine.free_blocks() == engine.free_at_start


def test_a_prefix_that_is_cached_brings_its_statistics(engine, judge):
    base, more = prompts_of(300, 200, seed=5)
    engine.answers([base], max_tokens=2)
    output = engine.run([base + more], max_tokens=NEW)[0]
    assert output.num_cached_tokens == 256
    judge(base + more, output.outputs[0])


def assert_statistics(engine):
    """Of every complete page of every running request, in every layer that chooses.

    Returns:
        How many pages were compared.
    """
    from swaa.integrations.vllm.attention import page_statistics

    layers = engine.llm.llm_engine.vllm_config.compilation_config.static_forward_context
    compared = 0
    for manager, group in zip(
        engine.manager.coordinator.single_type_managers,
        engine.scheduler.kv_cache_config.kv_cache_groups,
        strict=True,
    ):
        choosing = [
            layers[name] for name in group.layer_names if layers[name].impl.plan.decode_keys
        ]
        complete = {}  # pages of each block, which requests share
        for request in engine.scheduler.running if choosing else ():
            pages = request.num_computed_tokens // PAGE
            for n, block in enumerate(manager.req_to_blocks[request.request_id]):
                held = min(manager.block_size // PAGE, pages - n * manager.block_size // PAGE)
                complete[block.block_id] = max(complete.get(block.block_id, 0), held)
        if not complete:
            continue
        blocks = torch.tensor(list(complete))
        within = torch.arange(manager.block_size // PAGE)
        pages = (within < torch.tensor(list(complete.values()))[:, None]).flatten()
        for layer in choosing:
            keys = layer.kv_cache[blocks].transpose(1, 2)[..., : layer.head_size].flatten(0, 1)
            found = page_statistics(layer.kv_cache)[blocks].flatten(0, 1)[pages]
            torch.testing.assert_close(found, describe(keys[None])[0, pages], atol=1e-5, rtol=1e-4)
            compared += len(found)
    return compared


def test_statistics_are_those_of_the_keys_after_every_step_of_random_traffic(checkpoint):
    rng, requests = random.Random(4), random_requests(200, seed=3)
    # So small a cache that requests are preempted.
    options = {"block_size": 32, "max_num_batched_tokens": 256, "num_gpu_blocks_override": 140}
    options |= {"max_model_len": 512, "max_num_seqs": 16, "watermark": 0.0}
    config = {**CONFIG.to_dict(), "selected_layers": [], "selected_keys": 0}
    compared = []
    with Engine(checkpoint(), config, **options) as engine:
        core = engine.llm.llm_engine
        step = core.step

        def checked():
            outputs = step()
            compared.append(assert_statistics(engine))
            return outputs

        core.step = checked
        serve(engine, [(prompt[:400], 1 + tokens // 2, n) for prompt, tokens, n in requests], rng)
        assert engine.preemptions > 0
        assert engine.free_blocks() == engine.free_at_start
    assert sum(compared) > 10_000


def test_blocks_that_hold_no_whole_number_of_pages_are_refused():
    from types import SimpleNamespace

    from swaa.integrations.vllm.kv_cache import padded_page_bytes

    spec = SimpleNamespace(block_size=24)
    with pytest.raises(ValueError, match="give --block-size a multiple of 16"):
        padded_page_bytes(spec)
