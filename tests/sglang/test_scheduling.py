"""What the scheduler does to requests, each in an engine of its own: mixing, retraction, ranks."""

import pytest

from swaa.config import SWAAConfig
from tests.served import Judge, prompts_of
from tests.sglang.conftest import ON_GPU
from tests.sglang.engine import Engine

CONFIG = SWAAConfig(window=24, sink_tokens=4, full_layers=(1,), full_decode=(2,), dense_tail=8)


@pytest.fixture(scope="module")
def judge(checkpoint):
    return Judge(checkpoint(), CONFIG)


def test_prompts_next_to_generated_rows(checkpoint, judge):
    prompts = prompts_of(20, 300, 31, 200, 65)
    with Engine(
        checkpoint(), CONFIG.to_dict(), {"poison": True}, enable_mixed_chunk=True
    ) as engine:
        outputs = engine.engine.generate(
            input_ids=prompts,
            sampling_params={"temperature": 0, "ignore_eos": True, "max_new_tokens": 24},
        )
        batches = engine.batches()
    mixed = [
        batch
        for batch in batches
        if batch["mode"] != "DECODE"
        and any(
            cached >= length
            for cached, length in zip(batch["cached"], batch["prompts"], strict=True)
        )
    ]
    assert mixed, "no generated row was computed next to a prompt"
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = output["output_ids"]
        assert judge.logits(prompt, ids).argmax(-1).tolist() == ids


def test_requests_that_are_taken_back_and_computed_again(checkpoint, judge, monkeypatch):
    monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
    monkeypatch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "5")
    prompts = prompts_of(100, 37, 150, 65)
    with Engine(checkpoint(), CONFIG.to_dict(), {"poison": True}, spawned=True) as engine:
        answers = engine.answers(prompts, max_tokens=30)
        batches = engine.batches()
    again = [
        (rows + cached, length)
        for batch in batches
        if batch["mode"] != "DECODE"
        for rows, cached, length in zip(
            batch["rows"], batch["cached"], batch["prompts"], strict=True
        )
        if rows + cached > length
    ]
    assert again, "no request was taken back after its prompt"
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)


@pytest.mark.skipif(ON_GPU, reason="one GPU")
@pytest.mark.parametrize(
    "options", [{"tp_size": 2}, {"pp_size": 2, "disable_overlap_schedule": True}], ids=["tp", "pp"]
)
def test_several_ranks(checkpoint, judge, monkeypatch, options):
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    prompts = prompts_of(100, 37, 150)
    with Engine(checkpoint(), CONFIG.to_dict(), {"poison": True}, **options) as engine:
        answers = engine.answers(prompts)
        turn = [*prompts[0], *answers[0].token_ids, *prompts_of(9, seed=5)[0]]
        second = engine.answers([turn])[0]
    for prompt, answer in zip([*prompts, turn], [*answers, second], strict=True):
        judge.check(prompt, answer)


def test_a_long_prompt_in_pools_of_little_more_than_its_size(checkpoint, judge):
    """Under a dense tail a prompt's keys are all kept: it must neither stall nor be cut."""
    prompts = prompts_of(600, 20, 500, 30, seed=8)
    with Engine(
        checkpoint(), CONFIG.to_dict(), {"poison": True}, max_total_tokens=900, context_length=800
    ) as engine:
        answers = engine.answers(prompts, max_tokens=12)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer.token_ids) == 12
        judge.check(prompt, answer)
