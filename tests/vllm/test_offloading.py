"""Keys that come back from the CPU's memory: answers, what is stored, and what is loaded."""

import dataclasses
import random
from types import SimpleNamespace

import pytest

from swaa.config import SWAAConfig
from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.settings import Settings
from swaa.integrations.vllm import connectors
from tests.vllm import test_selected as selected
from tests.vllm.conftest import MISSING
from tests.vllm.engine import BLOCK, OPTIONS, Judge, generating_judge, prompts_of, sampling
from tests.vllm.offloading import OffloadingEngine, erase, offloading
from tests.vllm.test_features import CONFIGS
from tests.vllm.test_scheduling import random_requests, serve
from tests.vllm.test_start import attempt

if not MISSING:
    from tests.vllm.fp8 import RoundedJudge

MIXED = SWAAConfig(window=24, sink_tokens=4, full_layers=(1,), full_decode=(0, 2, 3), dense_tail=8)
ALL_KEPT = {"disable_hybrid_kv_cache_manager": True}
STOCK = "vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector"
# A configuration, settings of the connector, options of the engine.
CASES = {
    "mixed": (MIXED, {"offload_prompt_only": False}, {}),
    "full_decode": (CONFIGS["full_decode"], {"blocks_per_chunk": 2}, {}),
    "sliding": (CONFIGS["sliding"], {}, ALL_KEPT),
    "tail": (CONFIGS["tail"], {"block_size": 3 * BLOCK}, ALL_KEPT),
    "no_prefix_cache": (MIXED, {}, {"enable_prefix_caching": False}),
}
PIECES = {"full_decode": 2 * BLOCK, "tail": 3 * BLOCK}
"""Tokens in what is stored under one hash, where it is not a block."""


@pytest.fixture(scope="module", params=CASES)
def case(request, checkpoint):
    """An engine, its judge, and tokens in a stored piece."""
    config, extra, options = CASES[request.param]
    with OffloadingEngine(checkpoint(), config.to_dict(), extra, **options) as engine:
        yield engine, Judge(checkpoint(), config), PIECES.get(request.param, BLOCK)


@pytest.fixture
def engine(case):
    """The engine of the module's ``case``, both of its caches empty."""
    case[0].forget_all()
    return case[0]


@pytest.fixture
def piece(case):
    """Tokens in a stored piece."""
    return case[2]


def pieces_up_to(tokens, piece):
    return list(range(piece, tokens + 1, piece))


def test_a_prefix_comes_back_and_goes_on(engine, judge, piece):
    base, more, short = prompts_of(260, 90, 30, seed=5)
    judge.check(base, engine.answers([base])[0])
    common = pieces_up_to(260 - judge.config.dense_tail, piece)
    assert sorted(engine.stored) == common
    assert engine.loads == []
    engine.forget()
    erase(engine)
    before, after = engine.run([short, base + more])
    assert engine.loads == common
    assert after.num_cached_tokens == common[-1]
    judge.check(short, before.outputs[0])
    judge.check(base + more, after.outputs[0])
    assert sorted(engine.stored) == pieces_up_to(350 - judge.config.dense_tail, piece)


def test_what_is_stored_goes_on_where_the_gpus_own_cache_ends(engine, judge, piece):
    base, more = prompts_of(260, 90, seed=6)
    engine.run([base])
    engine.forget()
    erase(engine)
    held = engine.run([base[: 2 * piece + 20]])[0]
    judge.check(base[: 2 * piece + 20], held.outputs[0])
    assert engine.loads == [piece, 2 * piece]
    engine.loads.clear()
    output = engine.run([base + more])[0]
    common = pieces_up_to(260 - judge.config.dense_tail, piece)
    on_gpu = 2 * piece if engine.manager.enable_caching else 0
    assert engine.loads == [end for end in common if end > on_gpu]
    assert output.num_cached_tokens == common[-1]
    judge.check(base + more, output.outputs[0])


@pytest.mark.parametrize("length", [4 * BLOCK, 6 * BLOCK + 4])
def test_no_prompt_loads_keys_of_its_own_tail(engine, judge, piece, length):
    (base,) = prompts_of(260, seed=7)
    engine.run([base])
    engine.forget()
    erase(engine)
    output = engine.run([base[:length]])[0]
    assert engine.loads == pieces_up_to(length - judge.config.dense_tail, piece)
    judge.check(base[:length], output.outputs[0])


def test_generated_keys_are_not_stored(engine, judge, piece):
    prompt, question = prompts_of(200, 40, seed=8)
    answer = engine.answers([prompt], max_tokens=70)[0]
    assert max(engine.stored) <= 200 - judge.config.dense_tail
    engine.forget()
    erase(engine)
    turn = [*prompt, *answer.token_ids, *question]
    judge.check(turn, engine.answers([turn])[0])
    assert engine.loads == pieces_up_to(200 - judge.config.dense_tail, piece)


def test_what_a_request_asks_for_holds_too(engine, judge, piece):
    (prompt,) = prompts_of(250, seed=9)
    engine.run([prompt], extra_args={"kv_transfer_params": {"max_offload_tokens": piece + 1}})
    assert engine.stored == [piece]
    engine.run([prompt], extra_args={"kv_transfer_params": {"max_offload_tokens": 10_000}})
    assert max(engine.stored) <= 250 - judge.config.dense_tail


def test_generated_keys_are_stored_where_they_are_published(checkpoint):
    prompt, question = prompts_of(200, 40, seed=8)
    asked = {**MIXED.to_dict(), "publish_generated": True}
    extra = {"offload_prompt_only": False}
    with OffloadingEngine(checkpoint(), asked, extra) as engine:
        answer = engine.answers([prompt], max_tokens=70)[0]
        assert sorted(engine.stored) == pieces_up_to(200 + 70 - 1, BLOCK)
        engine.forget()
        engine.run([[*prompt, *answer.token_ids, *question]])
        assert max(engine.loads) == 256


def test_a_session_stores_its_first_prompt_only(checkpoint):
    from vllm.v1.request import RequestStatus

    config = dataclasses.replace(MIXED, dense_tail=0)
    extra = {"offload_prompt_only": False}
    first, question = prompts_of(100, 70, seed=2)
    with OffloadingEngine(checkpoint(), config.to_dict(), extra) as engine:
        front, core = engine.llm.llm_engine, engine.llm.llm_engine.engine_core.engine_core
        for part in (first, question):
            given = {"prompt_token_ids": part}, sampling(max_tokens=60), ("generate",)
            made = front.input_processor.process_inputs("session", *given, resumable=True)
            core.add_request(*core.preprocess_add_request(made))
            session = engine.scheduler.requests["session"]
            while session.status != RequestStatus.WAITING_FOR_STREAMING_REQ:
                core.step_fn()
        assert session.num_tokens > 280
        core.abort_requests(["session"])
        engine.run([[5]], max_tokens=1)
        assert sorted(engine.stored) == [32, 64, 96]


def test_selected_keys_come_back(checkpoint):
    config = dataclasses.replace(selected.CONFIG, full_decode=True)
    judge = generating_judge(checkpoint())
    base, more = prompts_of(300, 200, seed=4)
    with OffloadingEngine(checkpoint(), config.to_dict(), **selected.OPTIONS) as engine:
        engine.run([base], max_tokens=2)
        engine.forget()
        erase(engine)
        answer = engine.answers([base + more], max_tokens=selected.NEW)[0]
        assert engine.loads == [128, 256]
    judge(base + more, answer, config=config, chunk=selected.CHUNK)


def test_keys_in_fp8_come_back(checkpoint):
    judge = RoundedJudge(checkpoint(), MIXED)
    base, more = prompts_of(140, 30, seed=5)
    with OffloadingEngine(checkpoint(), MIXED.to_dict(), kv_cache_dtype="fp8") as engine:
        engine.run([base], max_tokens=2)
        engine.forget()
        erase(engine)
        answer = engine.answers([base + more], max_tokens=8)[0]
        assert max(engine.loads) == 128
    judge.check(base + more, answer)


def test_preempted_requests_answer_as_if_alone(checkpoint):
    judge = Judge(checkpoint(), MIXED)
    prompts = prompts_of(150, 180, 210, 120, seed=11)
    options = {"num_gpu_blocks_override": 30, "max_model_len": 320, "watermark": 0.0}
    with OffloadingEngine(checkpoint(), MIXED.to_dict(), **options) as engine:
        answers = engine.answers(prompts, max_tokens=110)
        assert engine.preemptions > 0
        assert engine.loads  # of requests that are computed again
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)


def test_traffic_is_answered_as_if_alone(checkpoint):
    requests = random_requests(12, seed=3, longest=500)
    options = {"max_model_len": 792, "num_gpu_blocks_override": 40, "watermark": 0.0}
    extra = {"cpu_bytes_to_use": 1 << 21}  # so little that the oldest pieces make room
    # Without full layers: on GPUs vLLM's own kernels round float32, and near ties follow the batch.
    config = CONFIGS["full_decode"]
    with OffloadingEngine(checkpoint(), config.to_dict(), extra, **options) as engine:
        answers = serve(engine, requests, random.Random(4))
        assert engine.preemptions > 0
        assert engine.loads
        for index, found in answers.items():
            prompt, tokens, _ = requests[index]
            engine.forget_all()
            alone = list(engine.answers([prompt], max_tokens=tokens)[0].token_ids)
            assert all(each == alone for each in found), f"request {index}"


def transfer(**changes):
    """The option of an engine that offloads, with changes."""
    return {"kv_transfer_config": {**offloading()["kv_transfer_config"], **changes}}


@pytest.mark.parametrize(
    ("knobs", "options", "reason"),
    [
        (MIXED, transfer(kv_role="kv_producer"), r"P/D disaggregation (kv_producer) brings keys"),
        (MIXED, transfer(kv_role="kv_consumer"), r"P/D disaggregation (kv_consumer) brings keys"),
        (
            MIXED,
            transfer(kv_connector="NixlConnector"),
            "NixlConnector may bring keys that were computed under another recipe",
        ),
        (
            MIXED,
            transfer(kv_connector="SimpleCPUOffloadConnector"),
            "SimpleCPUOffloadConnector may bring keys that were computed under another recipe",
        ),
        (
            MIXED,
            transfer(kv_connector_module_path=STOCK),
            "OffloadingConnector may bring keys",
        ),
        (MIXED, offloading(spec_name="TieringOffloadingSpec"), "with spec_name was not tried"),
        (MIXED, offloading(canonical_layout=True), "with canonical_layout was not tried"),
        (
            MIXED,
            {
                **offloading(),
                "speculative_config": {
                    "method": "ngram",
                    "num_speculative_tokens": 3,
                    "prompt_lookup_max": 3,
                },
            },
            "KV offloading was not tried next to speculative decoding",
        ),
        (CONFIGS["sliding"], offloading(), "sliding layers free blocks that vLLM may still be"),
        (CONFIGS["tail"], offloading(), "sliding layers free blocks that vLLM may still be"),
        (CONFIGS["all_kinds"], offloading(), "sliding layers free blocks that vLLM may still be"),
        (CONFIGS["heads"], offloading(), "was not tried with KV heads in full_decode"),
        (
            dataclasses.replace(MIXED, decode_keys=48),
            offloading(),
            "vLLM copies keys and values only, not the statistics",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(checkpoint, knobs, options, reason):
    assert reason in attempt(checkpoint(kv_heads=4), knobs.to_dict(), **options)


def test_an_engine_whose_connector_has_no_limits_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(connectors, "OFFLOADING", None)
    with pytest.raises(Exception, match="KV offloading stores and loads without its limits"):
        OffloadingEngine(checkpoint(), MIXED.to_dict())


def test_a_group_that_frees_blocks_is_refused_by_the_connector_itself(checkpoint, monkeypatch):
    monkeypatch.setattr(connectors, "_offloading_reasons", lambda *_given: ())
    with pytest.raises(Exception, match="and the cache has a group of SinkWindowSpec"):
        OffloadingEngine(checkpoint(), CONFIGS["sliding"].to_dict())


def test_linear_layers_are_refused(monkeypatch):
    monkeypatch.setattr(connectors, "served_model", lambda config: config.model)
    engine = SimpleNamespace(kv_transfer_config=True, model=SimpleNamespace(is_hybrid=True))
    with pytest.raises(UnsupportedError, match="not tried next to states of linear layers"):
        connectors.check_offloading(engine, Settings(config=MIXED))


def test_full_attention_offloads_as_vllm_does(checkpoint):
    from vllm.engine.arg_utils import EngineArgs

    for recipe, module in ({"recipe": "full"}, None), (MIXED.to_dict(), connectors.OFFLOADING):
        asked = {**OPTIONS, "kv_offloading_size": 0.1, "additional_config": {"swaa": recipe}}
        made = EngineArgs(checkpoint(), **asked).create_engine_config().kv_transfer_config
        assert (made.kv_connector, made.kv_connector_module_path) == ("OffloadingConnector", module)
