"""Full decode in some KV heads: bytes, groups, capacity, what goes with it and what is refused.

Tokens over the scheduler's features: test_features.py, test_scheduling.py, test_ranks.py and
test_drafts.py.
"""

import functools
import itertools
import re
from types import SimpleNamespace

import pytest

from swaa.config import LayerPlan, SWAAConfig
from swaa.integrations.vllm.settings import parse
from swaa.plan import price
from tests.vllm.engine import (
    BLOCK,
    ON_GPU,
    Engine,
    Judge,
    folder_for,
    generating_judge,
    prompts_of,
    sampling,
)
from tests.vllm.test_features import CONFIGS, live_blocks
from tests.vllm.test_start import attempt

HALF = SWAAConfig(
    window=24, sink_tokens=4, full_decode={"0": [1], "1": [0, 3], "2": [1, 2, 3], "3": [0, 2]}
)
HEAD = 2 * 32 * 4  # bytes of a token's key and value in one head, float32


@pytest.fixture
def said(monkeypatch):
    """What engines say at start, and the caches that they say it of."""
    from swaa.integrations.vllm import report

    def summary(*given, real=report.summary):
        lines.append((real(*given), given[2]))
        return lines[-1][0]

    lines = []
    monkeypatch.setattr(report, "summary", summary)
    return lines


def bytes_of_block(kv_cache):
    return kv_cache.kv_cache_tensors[0].size // kv_cache.num_blocks


def test_bytes_are_those_of_the_plan(checkpoint, said):
    """While a request decodes, up to what its blocks round up to."""
    from transformers import AutoConfig

    folder = folder_for(checkpoint, HALF)
    (prompt,) = prompts_of(1500, seed=1)
    with Engine(folder, HALF.to_dict()) as engine:
        core = engine.llm.llm_engine
        core.add_request("long", {"prompt_token_ids": prompt}, sampling(max_tokens=4))
        held = []
        while core.has_unfinished_requests():
            core.step()
            running = engine.scheduler.running
            held += [live_blocks(engine, request.request_id) for request in running]
    (line, kv_cache), blocks = said[0], [number for _, number in held[-1]]
    assert [kind for kind, _ in held[-1]] == ["AllKeysSpec", "SinkWindowSpec"]
    found = sum(blocks) * bytes_of_block(kv_cache)
    model = AutoConfig.from_pretrained(folder)
    cost = price(model, HALF, prompt_length=1504, dtype="float32").cost
    # Eight heads of sixteen keep all; of both kinds a block or two are not full.
    assert cost.kv_steady_bytes == 8 * HEAD * (1504 + 28)
    assert 0 <= found - cost.kv_steady_bytes <= 8 * HEAD * 3 * BLOCK
    full = price(model, SWAAConfig(window=None), prompt_length=1504, dtype="float32").cost
    assert found < 0.58 * full.kv_steady_bytes
    assert "8 KV heads in 4 layers AllKeys; 8 KV heads in 4 layers SinkWindow" in line


def test_capacity_at_start(checkpoint, said):
    with Engine(folder_for(checkpoint, HALF), HALF.to_dict()) as engine:
        vllm_config = engine.llm.llm_engine.vllm_config
        concurrency = vllm_config.cache_config.kv_cache_max_concurrency
        _, sliding = engine.manager.kv_cache_config.kv_cache_groups
        sliding = sliding.kv_cache_spec.max_admission_blocks_per_request(
            vllm_config.max_in_flight_tokens, 2048
        )
    ((line, kv_cache),) = said
    blocks = 2048 // BLOCK
    assert sliding < blocks / 4  # sinks, window and the chunks in flight
    most, decoding = (int(400 / (blocks + n) * 2048) for n in (sliding, 3))
    full = int(400 * bytes_of_block(kv_cache) / (16 * HEAD))
    assert most > 1.75 * full
    assert f"{most:,} tokens at the longest context (full attention {full:,})" in line
    assert f", {decoding:,} once prompts are computed; groups: " in line
    assert int(concurrency * 2048) == most


@pytest.mark.parametrize("tail", [0, 8])
def test_as_many_requests_as_were_stated_fit(checkpoint, said, tail):
    """All at once, to their last token: nothing is preempted, and one more request waits."""
    knobs = {**HALF.to_dict(), "dense_tail": tail}
    options = {"num_gpu_blocks_override": 80, "max_model_len": 512, "watermark": 0.0}
    with Engine(folder_for(checkpoint, HALF), knobs, **options) as engine:
        tokens = int(re.search(r"holds ([\d,]+) tokens", said[0][0])[1].replace(",", ""))
        count = tokens // 512
        core = engine.llm.llm_engine
        for n, prompt in enumerate(prompts_of(*[448] * (count + 1), seed=9)):
            core.add_request(str(n), {"prompt_token_ids": prompt}, sampling(max_tokens=64))
        together = 0
        while core.has_unfinished_requests():
            core.step()
            together = max(together, len(engine.scheduler.running))
        assert together >= count > 1
        assert tail or engine.preemptions == 0
        assert engine.free_blocks() == engine.free_at_start


def test_all_heads_of_layers_are_those_layers(checkpoint):
    config = SWAAConfig(window=24, full_decode={"1": [0, 1, 2, 3], "3": [3, 2, 1, 0]})
    (prompt,) = prompts_of(200, seed=4)
    with Engine(folder_for(checkpoint, config), config.to_dict()) as engine:
        answer = engine.answers([prompt])[0]
        groups = engine.manager.kv_cache_config.kv_cache_groups
        assert sorted(len(group.layer_names) for group in groups) == [2, 2]
    Judge(folder_for(checkpoint, config), config).check(prompt, answer)


@pytest.mark.parametrize(
    "family", ["olmo2", pytest.param("compiled", marks=pytest.mark.slow), "phi3"]
)
def test_models_that_hand_their_heads_over_otherwise(
    checkpoint, olmo2_restored, tmp_path, monkeypatch, family
):
    """vLLM's Transformers backend, a compiled model, and heads cut out of one tensor."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    compiled = family == "compiled"
    folder = checkpoint("qwen3" if compiled else family, kv_heads=4)
    config = CONFIGS["heads_tail"]
    judge = Judge(folder, config)  # first: vLLM's Transformers backend changes classes
    prompts = prompts_of(129, 40)
    with Engine(folder, config.to_dict(), enforce_eager=not compiled) as engine:
        answers = engine.answers(prompts, max_tokens=12)
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)


def test_nothing_is_freed_without_the_hybrid_cache_manager(checkpoint):
    (prompt,) = prompts_of(300, seed=9)
    folder, options = folder_for(checkpoint, HALF), {"disable_hybrid_kv_cache_manager": True}
    with Engine(folder, HALF.to_dict(), **options) as engine:
        answer = engine.answers([prompt])[0]
        managers = engine.manager.coordinator.single_type_managers
        assert [type(manager.kv_cache_spec).__name__ for manager in managers] == ["AllKeysSpec"]
    Judge(folder, HALF).check(prompt, answer)


CHOOSING = SWAAConfig(
    window=24,
    sink_tokens=4,
    full_layers=(3,),
    full_decode={"0": [1, 3], "1": [0], "2": [2]},
    dense_tail=8,
    selected_layers=(1,),
    selected_keys=64,
    decode_keys=48,
)


def test_heads_that_choose_what_they_read_next_to_layers_that_select(checkpoint):
    folder = folder_for(checkpoint, CHOOSING)
    judge = functools.partial(generating_judge(folder), config=CHOOSING, chunk=128)
    options = {"block_size": 128, "max_num_batched_tokens": 128, "num_gpu_blocks_override": 100}
    base, more = prompts_of(300, 200, seed=5)
    with Engine(folder, CHOOSING.to_dict(), **options) as engine:
        for prompt in (base, base + more, *prompts_of(1, 129, seed=6)):
            judge(prompt, engine.answers([prompt], max_tokens=20)[0])
        assert engine.run([base + more])[0].num_cached_tokens == 384
        layers = engine.llm.llm_engine.vllm_config.compilation_config.static_forward_context
        padded = {
            name.removeprefix("model.layers."): layer.swaa.plan.decode_keys > 0
            for name, layer in layers.items()
        }
    assert padded["0.self_attn.attn"]
    assert not padded["0.self_attn.attn.sliding"]


@pytest.mark.skipif(ON_GPU, reason="names the classes of a CPU")
def test_a_part_that_is_not_ours_stops_the_engine(checkpoint, monkeypatch):
    from swaa.integrations.vllm import backend

    def stock(memory, real=backend.sliding_backend):
        mine, (theirs, _) = real(memory), backend.platform_attention()
        if memory.plan.full_decode:
            return mine
        layouts = classmethod(lambda cls: mine.supported_kv_cache_layouts())
        return type("Stock", (theirs,), {"supported_kv_cache_layouts": layouts})

    monkeypatch.setattr(backend, "sliding_backend", stock)
    reason = attempt(folder_for(checkpoint, HALF), HALF.to_dict())
    assert "attn.sliding: its attention is CPUAttentionBackendImpl" in reason


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tensor_parallel_size": 2}, "of layer 0 the ranks would keep 0, 1, and the blocks of"),
        ({"tensor_parallel_size": 3}, "4 KV heads are not dealt out evenly to 3 ranks"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism was not tried with them"),
        ({}, None),
    ],
    ids=["ranks", "odd", "stages", "none"],
)
def test_heads_that_ranks_would_hold_unevenly(options, reason):
    from swaa.integrations.vllm.support import check_heads

    parallel = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, **options}
    model = SimpleNamespace(
        get_total_num_kv_heads=lambda: 4,
        get_total_num_hidden_layers=lambda: 3,
        runner_type="generate",
    )
    config = SimpleNamespace(parallel_config=SimpleNamespace(**parallel), model_config=model)
    whole = {"window": 24, "full_layers": [0], "full_decode": {"0": [2], "2": [0, 1, 2, 3]}}
    check_heads(config, parse(whole))
    settings = parse({"window": 24, "full_decode": {"0": [2], "1": [1, 2], "2": [0, 1, 2, 3]}})
    if reason is None:
        check_heads(config, settings)
        return
    with pytest.raises(ValueError, match=rf"full_decode names KV heads 0:2,1:1.2: {reason}"):
        check_heads(config, settings)


def test_layers_with_unlike_numbers_of_heads_are_refused(monkeypatch):
    from swaa.integrations.vllm.layers import Active
    from vllm import distributed

    monkeypatch.setattr(distributed, "get_tensor_model_parallel_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_tensor_model_parallel_rank", lambda: 1)
    settings = parse({"window": 24, "full_decode": {"0": [1, 3]}})
    active = Active(settings, settings.plans(1, 4), able=(0,), kv_heads=4, frees=True)
    plan, name = active.plans[0], "model.layers.0.self_attn.attn"
    assert active._on_this_rank(plan, name, 2).decode_heads == (1,)
    with pytest.raises(ValueError, match="1 KV heads on this rank and the model 4; full_decode"):
        active._on_this_rank(plan, name, 1)


def test_a_backend_that_cannot_read_packed_pages_is_refused():
    from vllm.v1.attention.backends.flex_attention import FlexAttentionBackend

    from swaa.integrations.vllm.backend import full_backend
    from swaa.integrations.vllm.kv_cache import Memory

    given = {"plan": LayerPlan(window=None), "frees": True, "prompt_only": True, "dense_tail": 0}
    full_backend(FlexAttentionBackend, Memory(**given))
    with pytest.raises(ValueError, match="unlike sizes, which FLEX_ATTENTION does not read"):
        full_backend(FlexAttentionBackend, Memory(**given, packed=True))


def packed(kept, of=8, window=2048, longest=131_072, tail=0, drafts=0):
    """Groups of a model of so many KV heads a layer, with this many that keep all in each."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    from swaa.integrations.vllm.kv_cache import Memory
    from swaa.integrations.vllm.packing import pack

    limits = {"frees": True, "prompt_only": True, "dense_tail": tail, "packed": True}
    specs = {}
    for layer, count in enumerate(kept):
        heads = tuple(range(count)) if count < of else ()
        plan = LayerPlan(
            window=window, full_decode=count == of, dense_tail=tail, decode_heads=heads
        )
        for n, part in enumerate(plan.parts(of)):
            stock = FullAttentionSpec(
                block_size=16, num_kv_heads=len(part.heads), head_size=128, dtype=torch.bfloat16
            )
            specs[f"{layer}.{n}"] = Memory(plan=part.plan, **limits).spec(stock)
    for n in range(drafts):
        stock = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
        full = Memory(plan=LayerPlan(window=None), **limits, draft=True)
        specs[f"draft_model.{n}"] = full.spec(stock)
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=longest),
        max_in_flight_tokens=16_384,
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1, prefill_context_parallel_size=1
        ),
    )
    groups = pack(specs, config)
    names = list(itertools.chain(*(group.layer_names for group in groups)))
    assert sorted(names) == sorted(specs)
    for group in groups:
        assert len({type(specs[name]) for name in group.layer_names}) == 1
    return groups


@pytest.mark.parametrize("tail", [0, 128])
@pytest.mark.parametrize(
    ("kept", "most", "waste"),
    [
        ([4] * 36, 2, 0),  # half of the heads
        ([2] * 36, 4, 0),  # a quarter
        ([0, 1, 7, 8, 3, 5, 4, 4, 2, 6] * 3, 3, 0.02),  # half, scattered
        ([8, 1, 0, 0, 2, 0] * 6, 6, 0.03),
        ([7] * 36, 8, 0.05),
        ([1, *[0] * 35], 10, 35),  # one head of 288, in blocks of 36
    ],
    ids=["half", "quarter", "scattered", "few", "most", "one"],
)
def test_groups_have_nearly_equal_bytes(kept, most, waste, tail):
    groups = packed(kept, tail=tail)
    sizes = [group.kv_cache_spec.page_size_bytes for group in groups]
    assert len(groups) <= most
    held = [
        max(sizes) * size / size
        for group, size in zip(groups, sizes, strict=True)
        if "AllKeys" in type(next(iter(group.kv_cache_spec.kv_cache_specs.values()))).__name__
    ]
    needed = sum(kept) * 16 * 2 * 128 * 2
    assert sum(held) <= (1 + waste) * needed or tail


def test_a_draft_model_stays_together_and_comes_first():
    groups = packed([4] * 36, drafts=30)
    names = groups[0].layer_names
    assert sum(name.startswith("draft_model.") for name in names) == 30
    assert not any(
        name.startswith("draft_model.") for group in groups[1:] for name in group.layer_names
    )
