"""Under pressure: preemption, random traffic, speculation, tensor parallelism."""

import dataclasses
import random

import pytest

from swaa.config import SWAAConfig
from tests.vllm.engine import ON_GPU, V2, Engine, Judge, folder_for, prompts_of, sampling
from tests.vllm.test_features import CONFIGS

MIXED = CONFIGS["all_kinds"]


@pytest.mark.parametrize("name", ["sliding", "all_kinds", "heads", "heads_tail"])
def test_preempted_requests_answer_as_if_alone(checkpoint, name):
    config = CONFIGS[name]
    folder = folder_for(checkpoint, config)
    judge = Judge(folder, config)
    prompts = prompts_of(150, 180, 210, 120, seed=11)
    # Blocks have other sizes where pages are packed: here two groups hold all keys.
    blocks = 46 if name.startswith("heads") else 30
    options = {"num_gpu_blocks_override": blocks, "max_model_len": 320, "watermark": 0.0}
    with Engine(folder, config.to_dict(), **options) as engine:
        answers = engine.answers(prompts, max_tokens=110)
        assert engine.preemptions > 0
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)


@pytest.mark.skipif(
    V2 and not ON_GPU,
    reason="Triton's interpreter does not run vLLM's own kernels for drafts",
)
@pytest.mark.parametrize("name", ["sliding", "full_decode", "all_kinds", "heads"])
def test_verified_drafts_follow_their_own_position(checkpoint, name):
    config = CONFIGS[name]
    folder = folder_for(checkpoint, config)
    judge = Judge(folder, config)
    (part,) = prompts_of(40, seed=12)
    prompts = [part * 4, part * 3 + part[:7], *prompts_of(65, seed=13)]
    drafter = {"method": "ngram", "num_speculative_tokens": 3}
    drafter |= {"prompt_lookup_min": 1, "prompt_lookup_max": 3}
    with Engine(folder, config.to_dict(), speculative_config=drafter) as engine:
        drafted = count_drafts(engine)
        answers = engine.answers(prompts, max_tokens=60)
        assert drafted[0] > 20
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)


def count_drafts(engine):
    drafted = [0]
    schedule = engine.scheduler.schedule

    def counting(*args, **kwargs):
        output = schedule(*args, **kwargs)
        drafted[0] += sum(map(len, output.scheduled_spec_decode_tokens.values()))
        return output

    engine.scheduler.schedule = counting
    return drafted


LONGEST = 8000 if ON_GPU else 4000


def random_requests(count, seed, longest=LONGEST):
    """Prompts of 1 to so many tokens, 30 % of them repeats, 30 % grown on part of another."""
    rng = random.Random(seed)
    made = []
    for n in range(count):
        length = min(longest, int(2 ** rng.uniform(0, 13)))
        kind = rng.random()
        if made and kind < 0.3:
            made.append(rng.choice(made))
            continue
        (prompt,) = prompts_of(length, seed=1000 + n)
        if made and kind < 0.6:
            earlier = rng.choice(made)[0]
            prompt = (earlier[: rng.randrange(1, len(earlier) + 1)] + prompt)[:longest]
        made.append((prompt, rng.randrange(1, 80), rng.choice([1, 1, 1, 2, 4])))
    return made


# Requests, their longest prompt, and blocks: so few that requests are preempted.
TRAFFIC = {
    "all_kinds": (200, LONGEST, 530 if ON_GPU else 290),
    # On CPUs fewer and shorter ones: what they share with all kinds is seen there, at length.
    "sliding": (200, LONGEST, 150) if ON_GPU else (80, 2000, 130),
    "heads_tail": (200, LONGEST, 800) if ON_GPU else (80, 2000, 220),
}


@pytest.mark.slow
@pytest.mark.timeout(1700)
@pytest.mark.parametrize("name", TRAFFIC)
def test_random_traffic_answers_as_if_alone(checkpoint, monkeypatch, name):
    if V2 and not ON_GPU:
        from vllm.v1.sample.ops import topk_topp_sampler as sampler

        # Triton's interpreter does not run vLLM's own kernel for it.
        monkeypatch.setattr(sampler, "apply_top_k_top_p_triton", sampler.apply_top_k_top_p_pytorch)
    config = CONFIGS[name]
    if ON_GPU:
        # No full layers: vLLM's stock float32 kernels round to TF32, so near ties would depend on
        # the batch.
        decode = (1, 2) if config.full_decode else False
        decode = config.full_decode if name == "heads_tail" else decode
        config = dataclasses.replace(config, full_layers=(), full_decode=decode)
    count, longest, blocks = TRAFFIC[name]
    requests = random_requests(count, seed=3, longest=longest)
    rng = random.Random(4)
    options = {
        "max_model_len": longest + 192,
        "max_num_batched_tokens": longest // 1000 * 64,
        "num_gpu_blocks_override": blocks,
        "max_num_seqs": 32,
        "watermark": 0.0,
    }
    with Engine(folder_for(checkpoint, config), config.to_dict(), **options) as engine:
        together = serve(engine, requests, rng)
        # Layers that all slide never outgrow what was set aside for them.
        assert engine.preemptions > 0 or (ON_GPU and name == "sliding")
        assert engine.free_blocks() == engine.free_at_start
        alone = {}
        for index, answers in together.items():
            prompt, tokens, _ = requests[index]
            key = (tuple(prompt), tokens)
            if key not in alone:
                engine.forget()
                alone[key] = list(engine.answers([prompt], max_tokens=tokens)[0].token_ids)
            assert all(answer == alone[key] for answer in answers), f"request {index}"


def serve(engine, requests, rng):
    """Add requests while others run, abort one in ten; the answers of those that ended."""
    core = engine.llm.llm_engine
    waiting, running, answers = list(enumerate(requests)), {}, {}
    while waiting or core.has_unfinished_requests():
        for index, (prompt, tokens, n) in [waiting.pop(0) for _ in range(min(3, len(waiting)))]:
            # top_k=1 is greedy; temperature 0 would refuse several answers.
            wanted = sampling(max_tokens=tokens, n=n, temperature=1.0, top_k=1, logprobs=None)
            core.add_request(str(index), {"prompt_token_ids": prompt}, wanted)
            running[str(index)] = index
        for output in core.step():
            if output.finished:
                index = running.pop(output.request_id)
                answers[index] = [list(each.token_ids) for each in output.outputs]
        if running and rng.random() < 0.02:
            victim = rng.choice(list(running))
            core.abort_request([victim])
            del running[victim]
    return answers


def test_all_layers_left_full_is_refused(checkpoint):
    config = SWAAConfig(window=24, full_layers=(0, 1, 2, 3))
    with pytest.raises(Exception, match="no layer would slide"):
        Engine(checkpoint(), config.to_dict())
