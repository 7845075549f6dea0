"""One model in two processes: heads dealt to tensor-parallel ranks, layers to pipeline stages."""

import pytest

from swaa.config import SWAAConfig
from tests.forked import Forking
from tests.vllm.engine import ON_GPU, V2, Engine, Judge, folder_for, prompts_of
from tests.vllm.shared_gpu import RANKS, sharing
from tests.vllm.test_drafts import count_tokens, drafting
from tests.vllm.test_features import CONFIGS

HEADS = {"tensor_parallel_size": RANKS}
LAYERS = {"pipeline_parallel_size": RANKS}

stages = pytest.mark.skipif(
    not V2, reason="vLLM 0.32's V1 runner fails on CPU stages, with swaa or without"
)


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    """On a CPU; servers of several processes, in test_server.py, spawn theirs."""
    if not ON_GPU:
        from vllm.v1.executor import multiproc_executor

        forking = Forking("tests.vllm.conftest", multiproc_executor.__name__)
        monkeypatch.setattr(multiproc_executor, "get_mp_context", lambda: forking)


@pytest.mark.parametrize("name", ["all_kinds", "sliding"])
@pytest.mark.parametrize(
    "split", [pytest.param(HEADS, id="heads"), pytest.param(LAYERS, id="layers", marks=stages)]
)
def test_answers_are_those_of_one_process(checkpoint, split, name):
    config = CONFIGS[name]
    judge = Judge(checkpoint(), config)
    prompts = prompts_of(150, 180, 210, 120, seed=11)
    # Of the longest request vLLM wants to hold what slides for the chunks in flight in every stage.
    longest, blocks = (512, 56) if (split, name) == (LAYERS, "sliding") else (320, 30)
    options = {"num_gpu_blocks_override": blocks, "max_model_len": longest, "watermark": 0.0}
    with Engine(checkpoint(), config.to_dict(), **options, **split, **sharing()) as engine:
        outputs = engine.run(prompts, max_tokens=longest - max(map(len, prompts)))
        assert engine.preemptions > 0
        outputs += [engine.run([prompt])[0] for prompt in (prompts[0], prompts[0])]
        assert outputs[-1].num_cached_tokens > 0
    for prompt, output in zip([*prompts, prompts[0], prompts[0]], outputs, strict=True):
        judge.check(prompt, output.outputs[0])


def test_kept_heads_are_dealt_out_to_ranks(checkpoint):
    """As many to each: of layer 0 the first head of either rank, of layer 2 another one of each."""
    config = SWAAConfig(
        window=24, sink_tokens=4, full_decode={"0": [0, 2], "2": [1, 2]}, dense_tail=8
    )
    folder = folder_for(checkpoint, config)
    judge = Judge(folder, config)
    prompts = prompts_of(150, 5, 270, seed=31)
    with Engine(folder, config.to_dict(), **HEADS, **sharing()) as engine:
        outputs = [*engine.run(prompts, max_tokens=60), *engine.run(prompts[:1], max_tokens=60)]
        assert outputs[-1].num_cached_tokens > 0
    for prompt, output in zip([*prompts, prompts[0]], outputs, strict=True):
        judge.check(prompt, output.outputs[0])


def test_a_draft_model_is_dealt_out_too(checkpoint):
    config = CONFIGS["all_kinds"]
    judge = Judge(checkpoint(), config)
    prompts = prompts_of(150, 5, 270, seed=31)
    options = {**drafting(checkpoint()), **HEADS, **sharing()}
    with Engine(checkpoint(), config.to_dict(), **options) as engine:
        told = count_tokens(engine)
        answers = engine.answers(prompts, max_tokens=40)
    assert 0 < told["num_accepted_tokens"] < told["num_draft_tokens"]
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)
