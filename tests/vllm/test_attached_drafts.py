"""Drafts that read the served model's hidden states: EAGLE, EAGLE-3, MTP."""

from types import SimpleNamespace

import pytest

from swaa.config import SWAAConfig
from swaa.integrations.refusal import NotActiveError
from tests.vllm.attached import Eagle, Eagle3, MiMo, Proposals, save_pair
from tests.vllm.engine import BLOCK, CHUNK, ON_GPU, STOCK_TOLERANCE, V2, Engine, Judge, prompts_of
from tests.vllm.test_drafts import (
    PROPOSED,
    WHAT,
    count_tokens,
    one_by_one,
    schedule_ahead,
    summary,
)
from tests.vllm.test_features import CONFIGS

SOME_KEPT = "2 full decode in some KV heads, 2 sliding"
SOME_HEADS = SWAAConfig(window=24, sink_tokens=4, full_decode={"0": [1], "2": [0]}, dense_tail=8)
CASES = [
    ("sliding", Eagle, "guesses"),
    ("full_decode", Eagle, "imitates"),
    ("tail", Eagle, "imitates"),
    ("some_heads", Eagle, "imitates"),
    ("sliding", Eagle3, "imitates"),
    ("all_kinds", Eagle3, "guesses"),
    ("sliding", MiMo, "guesses"),
    ("all_kinds", MiMo, "imitates"),
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A function that makes a served model and its draft, each once."""
    made = {}

    def pair(kind, how):
        if (kind, how) not in made:
            folder = tmp_path_factory.mktemp(kind.method)
            made[kind, how] = save_pair(folder, kind, how == "imitates")
        return made[kind, how]

    return pair


def drafting(draft, folder, how="imitates", **extra):
    """Options of an engine.

    Where it proposes at random, in steps of whole prompts: of a longer one vLLM 0.32's V1 runner
    (``prepare_next_token_ids_padded``) hands the draft the prompt's last token in place of the next
    one at the end of each chunk, so that the draft's key there is another.
    """
    asked = {"method": draft.method, "model": folder, "num_speculative_tokens": PROPOSED}
    step = CHUNK if how == "imitates" else 512
    return {"speculative_config": asked | extra, "max_num_batched_tokens": step}


def watch_proposals(engine):
    """Of all steps that verify: a request's tokens so far, and what was proposed to it."""
    seen, schedule = set(), engine.scheduler.schedule

    def watching(*args, **kwargs):
        output = schedule(*args, **kwargs)
        for name, tokens in output.scheduled_spec_decode_tokens.items():
            known = engine.scheduler.requests[name].all_token_ids
            seen.add((tuple(known), tuple(tokens)))
        return output

    engine.scheduler.schedule = watching
    return seen


def check_proposals(seen, draft, judge, prompt, answer):
    """What was proposed to one request is what the draft proposes when it sees every key."""
    proposals = Proposals(draft, judge, prompt, answer.token_ids)
    whole = (*prompt, *answer.token_ids)
    steps = [step for step in seen if step[0] == whole[: len(step[0])]]
    assert len(steps) > len(answer.token_ids) // 2
    for known, tokens in steps:
        assert max(proposals.lost(len(known), tokens)) < STOCK_TOLERANCE


@pytest.mark.parametrize(("name", "kind", "how"), CASES)
def test_answers_are_those_of_the_served_model(pairs, name, kind, how):
    config = SOME_HEADS if name == "some_heads" else CONFIGS[name]
    draft, served, beside = pairs(kind, how)
    prompts = prompts_of(150, 5, 160, seed=31)
    (long,) = prompts_of(270, seed=32)
    with Engine(served, config.to_dict(), **drafting(draft, beside, how)) as engine:
        told, seen = count_tokens(engine), watch_proposals(engine)
        runs = [engine.run(prompts, max_tokens=tokens) for tokens in (40, 12)]
        answer, held = one_by_one(engine, long, 48)
        line = summary(engine)
        assert engine.free_blocks() == engine.free_at_start
    judge = Judge(served, config)
    for outputs in runs:
        for prompt, output in zip(prompts, outputs, strict=True):
            judge.check(prompt, output.outputs[0])
    judge.check(long, answer)
    if how == "guesses" and not V2:  # there the scheduler does not know what is proposed
        for prompt, given in zip((*prompts, long), (*runs[0], answer), strict=True):
            check_proposals(seen, draft, judge, prompt, getattr(given, "outputs", [given])[0])
    with pytest.raises(AssertionError):
        judge.under(SWAAConfig(window=4096)).check(long, answer)
    share = told["num_accepted_tokens"] / told["num_draft_tokens"]
    assert share > 0.5 if how == "imitates" else share < 0.2
    assert (
        f" of 4 layers ({WHAT.get(name, SOME_KEPT)}) next to a draft ({kind.method}) of 1: " in line
    )
    # From the prefix cache, without the last block that was found: vLLM drops it.
    hits = [output.num_cached_tokens for output in runs[1]]
    found = [(len(prompt) - config.dense_tail) // BLOCK * BLOCK for prompt in prompts]
    assert hits == [max(0, tokens - BLOCK) for tokens in found]
    ahead = 3 * (1 + PROPOSED) if ON_GPU else PROPOSED  # GPUs: two steps in flight, one proposed
    kept = 1 + -(-config.sink_tokens // BLOCK) + -(-(config.window + ahead) // BLOCK)
    for step in held:
        assert {kind: most for kind, most in step if kind != "AllKeysSpec" and most > kept} == {}
    assert held


@pytest.mark.skipif(V2, reason="tests/vllm/test_drafts.py preempts next to a draft model")
@pytest.mark.parametrize(
    ("name", "kind", "ahead", "cached", "blocks"),
    [("sliding", Eagle, True, True, 40), ("all_kinds", MiMo, False, False, 52)],
    ids=["eagle", "mtp"],
)
def test_preempted(pairs, monkeypatch, name, kind, ahead, cached, blocks):
    """With steps scheduled ahead, and without the prefix cache."""
    if ahead:
        schedule_ahead(monkeypatch)
    config = CONFIGS[name]
    draft, served, beside = pairs(kind, "imitates")
    prompts = prompts_of(150, 180, 210, 120, seed=33)
    options = {"num_gpu_blocks_override": blocks, "max_model_len": 512, "watermark": 0.0}
    options |= {"enable_prefix_caching": cached, **drafting(draft, beside)}
    with Engine(served, config.to_dict(), **options) as engine:
        told = count_tokens(engine)
        assert engine.llm.llm_engine.vllm_config.scheduler_config.async_scheduling == ahead
        answers = engine.answers(prompts, max_tokens=250)
        assert engine.preemptions > 0
    assert told["num_accepted_tokens"] > told["num_draft_tokens"] / 2
    judge = Judge(served, config)
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)


def speculating(method="eagle", modules=1, parallel=False, kind="llama"):
    """A speculative configuration."""
    return SimpleNamespace(
        method=method,
        parallel_drafting=parallel,
        use_multi_module_mtp=lambda: modules > 1,
        draft_model_config=SimpleNamespace(
            model="draft", hf_config=SimpleNamespace(model_type=kind, swaa="fast")
        ),
    )


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({}, None),
        ({"method": "mtp", "kind": "mimo_mtp"}, None),
        ({"method": "mtp", "kind": "gemma4_mtp"}, "prediction by gemma4_mtp was not tried; served"),
        ({"method": "mtp", "kind": "mimo_mtp", "modules": 2}, "several modules of multi-token"),
        ({"method": "eagle3", "parallel": True}, "parallel drafting by eagle3 was not tried"),
    ],
)
def test_attached_drafts_that_are_refused(asked, reason):
    from swaa.integrations.vllm.support import _attached_reasons

    said = list(_attached_reasons(speculating(**asked)))
    assert len(said) == (reason is not None)
    assert reason is None or reason in said[0]


def test_only_the_served_models_own_checkpoint_may_ask_for_swaa_beside_a_draft():
    from swaa.integrations.vllm.support import UnsupportedError, check_draft

    def engine(served):
        model = SimpleNamespace(model=served, runner_type="generate")
        return SimpleNamespace(model_config=model, speculative_config=speculating("mtp"))

    check_draft(engine("draft"))
    with pytest.raises(UnsupportedError, match="drafts run with full attention"):
        check_draft(engine("another"))


@pytest.mark.parametrize("runner", ["drafter", "speculator"])
def test_layers_that_were_not_told_from_the_served_models_stop_the_engine(runner):
    from swaa.integrations.vllm.report import _check_drafts

    name = "_draft_attn_layer_names" if runner == "drafter" else "draft_attn_layer_names"
    runner = SimpleNamespace(**{runner: SimpleNamespace(**{name: {"b"}})})
    layers = {n: SimpleNamespace(swaa=SimpleNamespace(draft=n == "b")) for n in "ab"}
    cache = SimpleNamespace(kv_cache_groups=[SimpleNamespace(layer_names=["b"])])
    engine = SimpleNamespace(speculative_config=speculating())
    _check_drafts(runner, layers, cache, engine)
    layers["a"].swaa.draft = True
    with pytest.raises(NotActiveError, match=r"drafts with \['b'\], and swaa took \['a', 'b'\]"):
        _check_drafts(runner, layers, cache, engine)
