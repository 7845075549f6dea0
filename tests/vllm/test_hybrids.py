"""Models with linear layers between those with keys: only the latter take a recipe.

vLLM's CPU kernels for the gated delta nets of Qwen3-Next and Qwen3.5 take bfloat16 only, so here
these are computed by PyTorch, in float32.
"""

import dataclasses
from types import SimpleNamespace

import pytest

from swaa.config import SWAAConfig
from tests.vllm import wrappers
from tests.vllm.engine import BLOCK, CHUNK, Engine, Judge, generating_judge, prompts_of
from tests.vllm.hybrids import compute_delta_nets_in_float32, save_hybrid

KNOBS = {"window": 24, "sink_tokens": 4}
# Layers 1, 3 and 5 have keys; rules count all six, as they do in Transformers.
CASES = {
    "qwen3_next": SWAAConfig(**KNOBS, full_layers=(1,), full_decode=(3,), dense_tail=8),
    "lfm2": SWAAConfig(**KNOBS, full_layers="last:1/3"),
}
OPTIONS = {
    # Few, so that requests are preempted.
    "num_gpu_blocks_override": 44,
    "max_model_len": 512,
    "watermark": 0.0,
    # vLLM 0.32's own rotation on the CPU turns LFM2's queries wrongly, without swaa too.
    "compilation_config": {"custom_ops": ["none"]},
}


def listed(config):
    """The configuration with its rule as a list, as the judge reads it."""
    ruled = isinstance(config.full_layers, str)
    return dataclasses.replace(config, full_layers=(4, 5)) if ruled else config


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """An engine, its judge and its checkpoint."""
    family, config = request.param, CASES[request.param]
    folder = save_hybrid(tmp_path_factory.mktemp(family), family)
    with pytest.MonkeyPatch.context() as patch:
        compute_delta_nets_in_float32(patch)
        with Engine(folder, config.to_dict(), **OPTIONS) as engine:
            yield engine, Judge(folder, listed(config)), folder


def test_mixed_batch(engine, judge):
    prompts = prompts_of(5, 200, 33, 129)
    for prompt, answer in zip(prompts, engine.answers(prompts, max_tokens=12), strict=True):
        judge.check(prompt, answer)
    engine.forget()
    answers = engine.one_after_another(prompts, max_tokens=12)
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)


@pytest.mark.parametrize("length", [CHUNK + 1, 4 * CHUNK, 1])
def test_chunked_prefill_whatever_the_last_chunk(engine, judge, length):
    (prompt,) = prompts_of(length, seed=length)
    judge.check(prompt, engine.answers([prompt])[0])


def test_several_answers_to_one_prompt(engine, judge):
    (prompt,) = prompts_of(140, seed=3)
    output = engine.run([prompt], max_tokens=12, n=3, temperature=1.0)[0]
    for answer in output.outputs:
        judge.check(prompt, answer, greedy=False)


def test_prefix_cache_repeats_extends_and_cuts(engine, judge):
    base, more = prompts_of(268, 90, seed=5)
    hits = []
    for prompt in [base, base, base + more, base[:150], base[: 4 * BLOCK]]:
        output = engine.run([prompt], max_tokens=6)[0]
        hits.append(output.num_cached_tokens)
        judge.check(prompt, output.outputs[0])
    # vLLM keeps a state where a prompt's last whole block ends.
    assert hits[:3] == [0, 256, 256]


def test_states_of_a_dense_tail_do_not_meet_keys_of_a_longer_prompt(engine, judge):
    base, more, other = prompts_of(260, 90, 8, seed=6)
    hits = []
    # The first one's last whole block ends within its dense tail; the second publishes keys there.
    for prompt in [base, base + more, base + other, base + other, base]:
        output = engine.run([prompt], max_tokens=6)[0]
        hits.append(output.num_cached_tokens)
        judge.check(prompt, output.outputs[0])
    assert hits[3] > 0


def test_preempted_requests_answer_as_if_alone(engine, judge):
    prompts = prompts_of(40, 70, 50, 60, seed=11)
    already = engine.preemptions
    answers = engine.answers(prompts, max_tokens=200)
    assert engine.preemptions > already
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)


def test_the_same_recipe_in_transformers(case):
    engine, judge, folder = case
    check = generating_judge(folder)
    (prompt,) = prompts_of(150, seed=9)
    check(prompt, engine.answers([prompt])[0], config=judge.config, chunk=CHUNK)


def test_wrapper_with_delta_nets(tmp_path, monkeypatch):
    compute_delta_nets_in_float32(monkeypatch)
    wrappers.without_a_processor(monkeypatch)
    config, folder = CASES["qwen3_next"], wrappers.save_wrapper(tmp_path, "qwen3_5")
    judge = wrappers.WrapperJudge(folder, config)
    before, after, text = map(wrappers.without_marks, prompts_of(45, 90, 129))
    prompt = wrappers.around_a_picture(before, after)
    with Engine(folder, config.to_dict(), **OPTIONS, **wrappers.OPTIONS) as engine:
        given = [text, wrappers.request(prompt, 1)]
        rounds = [engine.in_turn(given, max_tokens=12) for _ in range(2)]
        (other,) = engine.in_turn([wrappers.request(prompt, 2)], max_tokens=12)
    for outputs in rounds:
        judge.check(text, outputs[0].outputs[0])
        judge.seeing(1).check(prompt, outputs[1].outputs[0])
    assert rounds[1][1].num_cached_tokens > 0
    judge.seeing(2).check(prompt, other.outputs[0])


def engine_of(changes):
    """What is asked of an engine that serves a model with linear layers."""
    model = SimpleNamespace(
        **dict.fromkeys(("is_encoder_decoder", "is_multimodal_model", "use_mla"), False),
        architectures=["Qwen3NextForCausalLM"],
        runner_type="generate",
        is_attention_free=False,
        is_hybrid=True,
        hf_text_config=SimpleNamespace(model_type=changes.get("model_type", "qwen3_next")),
    )
    return SimpleNamespace(
        model_config=model,
        speculative_config=changes.get("speculative"),
        parallel_config=SimpleNamespace(pipeline_parallel_size=changes.get("stages", 1)),
        cache_config=SimpleNamespace(
            mamba_cache_mode=changes.get("mode", "align"), prefix_match_unit=changes.get("unit")
        ),
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "bamba"}, "layers without softmax attention of a kind that was not tried"),
        ({"speculative": object()}, "speculative decoding was not tried next to states"),
        ({"stages": 2}, "pipeline parallelism was not tried next to states"),
        ({"mode": "all"}, "--mamba-cache-mode all was not tried"),
        ({"unit": 16}, "--prefix-match-unit would publish states within blocks"),
        ({}, None),
    ],
    ids=["family", "drafts", "stages", "mode", "unit", "none"],
)
def test_what_was_not_tried_next_to_linear_layers_is_refused(changes, reason):
    from swaa.integrations.vllm import support

    engine = engine_of(changes)
    reasons = support._model_reasons(engine.model_config), support._hybrid_reasons(engine)
    said = [*reasons[0], *reasons[1]]
    assert len(said) == (reason is not None)
    assert reason is None or reason in said[0]


@pytest.mark.parametrize(
    ("knobs", "name"),
    [
        ({"full_decode": {"3": [0]}}, "KV heads in full_decode"),
        ({"selected_layers": (3,), "selected_keys": 128}, "selected_layers"),
        ({"full_decode": True, "decode_keys": 64}, "decode_keys"),
    ],
)
def test_knobs_that_were_not_tried_next_to_linear_layers_are_refused(knobs, name):
    from swaa.integrations.refusal import UnsupportedError
    from swaa.integrations.vllm import support
    from swaa.integrations.vllm.settings import Settings

    with pytest.raises(UnsupportedError, match=f"next to whose states {name} was not tried"):
        support.check_states(engine_of({}), Settings(config=SWAAConfig(**KNOBS | knobs)))
    support.check_states(engine_of({}), Settings(config=SWAAConfig(**KNOBS)))


def test_states_that_vllm_publishes_from_within_a_block_are_refused():
    import torch
    from vllm.v1.kv_cache_interface import MambaSpec

    from swaa.integrations.refusal import UnsupportedError
    from swaa.integrations.vllm.kv_cache import bound_states

    state = MambaSpec(block_size=16, shapes=((2, 4),), dtypes=(torch.float32,))
    bound = bound_states({"a": state, "b": 7}, dense_tail=3)
    assert bound["b"] == 7
    assert (bound["a"].dense_tail, bound["a"].prompt_only) == (3, True)
    within = dataclasses.replace(state, num_prefill_checkpoint_blocks=1)
    with pytest.raises(UnsupportedError, match="from within a block were not tried"):
        bound_states({"a": within}, dense_tail=3)
