"""A draft model beside the served one: proposals accepted and rejected, in one cache."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from swaa.config import SWAAConfig
from tests.integrations.families import tiny_model
from tests.vllm.engine import BLOCK, CHUNK, ON_GPU, V2, Engine, Judge, prompts_of, sampling
from tests.vllm.test_features import CONFIGS, live_blocks
from tests.vllm.test_start import KNOBS, attempt, unhook

PROPOSED = 3
# Attention of the first two moves the scores, but seldom the best token: a draft that sees
# everything then proposes what rows that slide, or decode in full, will choose.
SERVED = {"faint": 0.003, "weak": 0.15, "strong": 1}
STRANGERS = {
    "long": {"num_hidden_layers": 6},  # more layers than slide: vLLM alone would part them
    "thin": {"num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1},
    "thick": {"num_hidden_layers": 2, "num_key_value_heads": 4},
}
WHAT = {
    "sliding": "1 full, 3 sliding",
    "full_decode": "4 full decode",
    "tail": "4 sliding",
    "all_kinds": "1 full, 1 full decode, 2 sliding",
    "heads": "3 full decode in some KV heads, 1 sliding",
    "heads_tail": "1 full, 2 full decode in some KV heads, 1 sliding",
}
CASES = [
    ("sliding", "faint", "faint"),
    ("full_decode", "weak", "weak"),
    ("tail", "faint", "faint"),
    ("all_kinds", "faint", "faint"),
    ("sliding", "strong", "long"),
    ("full_decode", "strong", "thin"),
    ("tail", "strong", "thin"),
    ("all_kinds", "strong", "thick"),
    ("heads", "faint", "faint"),
    ("heads_tail", "strong", "thin"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders with tiny random models, by name."""
    sizes = {"hidden_size": 128, "head_dim": 32, "max_position_embeddings": 8192}
    made = {}
    for name in (*SERVED, *STRANGERS):
        shape = STRANGERS.get(name, {})
        model = tiny_model("qwen3", initializer_range=0.2, **sizes, **shape)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.data.mul_(SERVED.get(name, 1))
        made[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(made[name])
    return made


@pytest.fixture
def _profiled(monkeypatch):
    """A CPU also tries the models out before it sizes the cache, as every GPU does."""
    if not ON_GPU:
        from vllm.v1.worker.cpu_worker import CPUWorker

        monkeypatch.setattr(CPUWorker, "_should_warm_up_model", lambda self: True)


def by(folder):
    return {"method": "draft_model", "model": folder, "num_speculative_tokens": PROPOSED}


def drafting(folder):
    """Options of an engine: as many requests as vLLM's V2 runner starts with on a GPU."""
    return {"speculative_config": by(folder), "max_num_seqs": CHUNK // 2}


def count_tokens(engine):
    """Proposed and accepted tokens, as the scheduler counts them."""
    told = {"num_draft_tokens": 0, "num_accepted_tokens": 0}
    make = engine.scheduler.make_spec_decoding_stats

    def counting(*args, **kwargs):
        for name in told:
            told[name] += kwargs[name]
        return make(*args, **kwargs)

    engine.scheduler.make_spec_decoding_stats = counting
    return told


def one_by_one(engine, prompt, tokens):
    """The answer to one prompt, and the blocks that it held after the prompt, step by step."""
    core, held, answer = engine.llm.llm_engine, [], None
    core.add_request("watched", {"prompt_token_ids": prompt}, sampling(max_tokens=tokens))
    while core.has_unfinished_requests():
        for output in core.step():
            answer = output.outputs[0]
        request = next(iter(engine.scheduler.requests.values()), None)
        if request is not None and request.num_computed_tokens > len(prompt) + BLOCK:
            held.append(live_blocks(engine, request.request_id))
    return answer, held


def summary(engine):
    """What is said at start."""
    from swaa.integrations.vllm import layers, report

    vllm_config = engine.llm.llm_engine.vllm_config
    found = report._attention_layers(vllm_config)
    kv_cache = engine.manager.kv_cache_config
    return report.summary(layers.active(vllm_config), found, kv_cache, vllm_config)


@pytest.mark.usefixtures("_profiled")
@pytest.mark.parametrize(("name", "served", "draft"), CASES)
def test_answers_are_those_of_the_served_model(models, name, served, draft):
    config = CONFIGS[name]
    prompts = prompts_of(150, 5, seed=31)
    (long,) = prompts_of(270, seed=32)
    with Engine(models[served], config.to_dict(), **drafting(models[draft])) as engine:
        told = count_tokens(engine)
        runs = [engine.run(prompts, max_tokens=tokens) for tokens in (40, 12)]
        answer, held = one_by_one(engine, long, 48)
        line = summary(engine)
        groups = engine.manager.kv_cache_config.kv_cache_groups
        assert engine.free_blocks() == engine.free_at_start
    judge = Judge(models[served], config)
    for outputs in runs:
        for prompt, output in zip(prompts, outputs, strict=True):
            judge.check(prompt, output.outputs[0])
    judge.check(long, answer)
    with pytest.raises(AssertionError):
        judge.under(SWAAConfig(window=4096)).check(long, answer)
    share = told["num_accepted_tokens"] / told["num_draft_tokens"]
    assert share > 0.7 if draft == served else share < 0.2
    layers = STRANGERS.get(draft, {}).get("num_hidden_layers", 4)
    assert f" of 4 layers ({WHAT[name]}) next to a draft model of {layers}: " in line
    holds = [any("draft_model." in name for name in group.layer_names) for group in groups]
    assert holds == [True] + [False] * (len(groups) - 1)
    # The second time from the prefix cache, at blocks that both models have.
    page = max(group.kv_cache_spec.block_size for group in groups)
    hits = [output.num_cached_tokens for output in runs[1]]
    assert hits == [max(0, len(p) - max(1, config.dense_tail)) // page * page for p in prompts]
    ahead = 3 * (1 + PROPOSED) if ON_GPU else PROPOSED  # GPUs: two steps in flight, one proposed
    kept = 1 + -(-config.sink_tokens // BLOCK) + -(-(config.window + ahead) // BLOCK)
    for step in held:
        assert {kind: most for kind, most in step if kind != "AllKeysSpec" and most > kept} == {}
    assert held


def schedule_ahead(monkeypatch):
    """Let the scheduler run a step ahead of what was verified, as on GPUs."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def ahead(cls, vllm_config):
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(ahead))


@pytest.mark.skipif(ON_GPU, reason="there vLLM schedules ahead by itself, in every test")
def test_preempted_while_drafts_are_in_flight(models, monkeypatch):
    schedule_ahead(monkeypatch)
    config = CONFIGS["sliding"]
    prompts = prompts_of(150, 180, 210, 120, seed=33)
    options = {"num_gpu_blocks_override": 40, "max_model_len": 512, "watermark": 0.0}
    options |= drafting(models["faint"])
    with Engine(models["faint"], config.to_dict(), **options) as engine:
        assert engine.llm.llm_engine.vllm_config.scheduler_config.async_scheduling
        answers = engine.answers(prompts, max_tokens=150)
        assert engine.preemptions > 0
    judge = Judge(models["faint"], config)
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)


@pytest.mark.skipif(V2, reason="the V2 runner asks for the group of each layer")
def test_draft_in_another_group_stops_the_engine(models, monkeypatch):
    from swaa.integrations.vllm import hooks

    owner = importlib.import_module(hooks._grouping_module())
    unhook(monkeypatch, owner, "get_kv_cache_groups")
    said = attempt(models["faint"], {"window": 24}, speculative_config=by(models["faint"]))
    assert "not in the first group of the cache" in said


def test_draft_whose_checkpoint_asks_for_swaa_is_refused(checkpoint):
    drafter = by(checkpoint(swaa=KNOBS))
    for swaa in (KNOBS, None):
        said = attempt(checkpoint(), swaa, speculative_config=drafter)
        assert "asks for swaa, but drafts run with full attention" in said


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "medusa"}, "speculative decoding by medusa was not tried; served are ngram, "),
        ({"kv_cache_dtype": "fp8"}, "a KV cache of fp8 is not served for a draft model"),
        ({"kv_cache_dtype": "float16"}, "a KV cache of float16 is not served"),
        ({"pipeline": 2}, "a draft model under pipeline parallelism"),
        ({"sees": 512}, "the draft model sees 512 tokens and 2,048 are served"),
        ({"requests": 33}, "33 requests next to a draft model need steps of 66 tokens"),
        ({"sees_pictures": True}, "a draft model was not tried where one of the models sees"),
        ({"is_hybrid": True}, "a draft model with linear layers was not tried"),
    ],
    ids=["medusa", "fp8", "another_type", "pipeline", "short", "crowded", "pictures", "linear"],
)
def test_speculation_that_is_refused(changes, reason):
    from swaa.integrations.vllm import support

    plain = ("is_encoder_decoder", "is_multimodal_model", "use_mla", "is_hybrid")
    draft = SimpleNamespace(architectures=["Draft"], runner_type="draft", is_attention_free=False)
    draft.__dict__.update(dict.fromkeys(plain, False), max_model_len=changes.get("sees", 2048))
    draft.is_hybrid = changes.get("is_hybrid", False)
    draft.hf_text_config = SimpleNamespace(model_type="qwen3_next")
    draft.dtype = torch.float32
    speculative = {"method": "draft_model", "draft_model_config": draft, "kv_cache_dtype": None}
    speculative |= changes
    vllm_config = SimpleNamespace(
        speculative_config=SimpleNamespace(**speculative),
        parallel_config=SimpleNamespace(pipeline_parallel_size=changes.get("pipeline", 1)),
        model_config=SimpleNamespace(
            max_model_len=2048,
            is_multimodal_model=changes.get("sees_pictures", False),
        ),
        scheduler_config=SimpleNamespace(
            max_num_seqs=changes.get("requests", 32), max_num_batched_tokens=64
        ),
        use_v2_model_runner=True,
    )
    (said,) = support._speculation_reasons(vllm_config)
    assert reason in said


@pytest.mark.skipif(not V2, reason="a limit of the V2 runner")
@pytest.mark.usefixtures("_profiled")
@pytest.mark.parametrize("requests", [CHUNK, CHUNK // 2 + 1])
def test_requests_that_leave_the_first_step_no_room_are_refused(checkpoint, requests):
    """vLLM alone fails an assertion that names none of its options."""
    options = {"speculative_config": by(checkpoint()), "max_num_seqs": requests}
    needed = f"need steps of {2 * requests} tokens to start vLLM's V2 runner, and a step has 64"
    assert needed in attempt(checkpoint(), {"window": 24}, **options)
    # An engine without swaa, to see that this vLLM still has the limit.
    assert "tokens" not in attempt(checkpoint(), None, AssertionError, **options)


def grouped(*groups):
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec

    return [KVCacheGroupSpec(names.split(), spec) for spec, names in groups]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ((("all", "a b"), ("slide", "c d")), [["a", "b"], ["c", "d"]]),
        (
            (("slide", "a b"), ("all", "draft_model.0 draft_model.1")),
            [["draft_model.0", "draft_model.1"], ["a", "b"]],
        ),
        (
            (
                *(("slide", "a d"), ("slide", "b e"), ("slide", "c f")),
                *(("all", "g draft_model.1"), ("all", "draft_model.0 draft_model.2")),
            ),
            [
                ["g", "draft_model.0", "draft_model.1", "draft_model.2"],
                ["a", "c", "e"],
                ["b", "d", "f"],
            ],
        ),
    ],
    ids=["no_draft", "behind", "parted"],
)
def test_a_draft_is_kept_together_in_the_first_group(groups, expected):
    from swaa.integrations.vllm.drafts import keep_together

    names = " ".join(names for _, names in groups).split()
    names.sort(key=lambda name: ("draft" in name, name))  # as vLLM has them
    specs = {name: SimpleNamespace(draft="draft" in name) for name in names}
    made = keep_together(grouped(*groups), specs)
    assert [group.layer_names for group in made] == expected
    assert all(group.kv_cache_spec in dict(groups) for group in made)


def test_rows_that_are_verified_are_never_gathered():
    from swaa.config import LayerPlan
    from tests.vllm.test_gpu_path import make_builder

    plan = LayerPlan(window=8)
    assert make_builder(plan, v2=True).min_rows == 32
    assert make_builder(plan, v2=True, drafts=40).min_rows == 42
