"""The fast path: static cache, decoding steps, compiled layers; against the loop-mask model."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import swaa
from swaa.attention import api
from swaa.integrations.transformers.cache import SWAACache
from swaa.integrations.transformers.cache_name import cache_argument, cache_of
from swaa.integrations.transformers.compiled_layers import compiled_layers, decoder_layers
from swaa.integrations.transformers.decode_step import DecodeStep
from swaa.integrations.transformers.fast import graph_sample, plans_of, prefill
from swaa.integrations.transformers.mask import RowInfo, announce
from swaa.integrations.transformers.static_cache import StaticSWAACache
from swaa.integrations.transformers.support import UnsupportedModelError, find_layers
from swaa.phase import Phase
from swaa.plan import price
from tests.integrations.families import adapted, tiny_model
from tests.integrations.test_generate_modes import (
    CONFIGS,
    FAMILIES_AND_CONFIGS,
    FULL_DECODE,
    MIXED_TAIL,
    PAD,
    PROMPT,
    SLIDING,
    check,
    generate,
    prompt,
)

OTHER_LAYERS = ("gemma3_text", "qwen3_next")
NEW = 25
"""New tokens: a ring of 8 is overwritten three times."""


@pytest.mark.parametrize(("family", "config"), FAMILIES_AND_CONFIGS)
def test_every_family_decodes_exactly(family, config):
    if family in OTHER_LAYERS:
        pytest.skip("has layers that a static cache does not serve")
    decodes_exactly(family, config, chunk=10)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_prompt_in_one_pass_decodes_exactly(config):
    decodes_exactly("llama", config, chunk=None)


def decodes_exactly(family, config, *, chunk):
    model = adapted(family, config)
    options = {"prefill_chunk_size": chunk, "max_new_tokens": NEW}
    output = generate(model, *prompt(), custom_generate=graph_sample, **options)
    check(model, config, output, [0, PAD])


@pytest.mark.parametrize("tokens", [3, 9, 11, 12])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_prompts_that_fill_no_ring(config, tokens):
    model = adapted("llama", config)
    ids = prompt(batch=1, tokens=tokens)[0]
    options = {"max_new_tokens": NEW, "custom_generate": graph_sample}
    output = generate(model, ids, torch.ones_like(ids), **options)
    check(model, config, output, [0], prompt_length=tokens)


def test_padding_longer_than_the_ring_of_a_short_prompt():
    model = adapted("llama", SLIDING)
    ids, mask = prompt()
    mask[1, : PROMPT - 4] = 0
    output = generate(model, ids, mask, max_new_tokens=NEW, custom_generate=graph_sample)
    check(model, SLIDING, output, [0, PROMPT - 4])


def test_memory_is_what_plan_predicts():
    for config in (*CONFIGS.values(), swaa.SWAAConfig(window=None)):
        model = adapted("llama", config)
        output = generate(
            model, *prompt(), custom_generate=graph_sample, prefill_chunk_size=10, max_new_tokens=1
        )
        cache = cache_of(output)
        options = {"prompt_length": PROMPT, "batch": 2, "chunk": 10, "dtype": "float32"}
        cost = price(model.config, config, **options).cost
        parts = [part for plan in plans_of(model) for part in plan.parts(2)]
        kept = sum(len(part.heads) for part in parts if part.plan.keeps_all_keys)
        one_token = 2 * 2 * 16 * 4 * kept
        assert cache.kv_bytes() == cost.kv_steady_bytes + one_token  # the room for the answer
        most = cost.kv_peak_bytes + 11 * one_token  # and of the chunk, before it is there
        if config is MIXED_TAIL:  # room for the whole prompt is taken before the prompt is there
            most = 4 * 2 * PROMPT * 2 * 2 * 16 * 4 + one_token
        assert cost.kv_peak_bytes <= cache.peak_kv_bytes <= most


def test_sampling_stopping_and_streaming_work_as_in_generate():
    model = adapted("llama", MIXED_TAIL)
    ids, mask = prompt()
    options = {"do_sample": True, "max_new_tokens": NEW, "top_k": 5}
    torch.manual_seed(0)
    expected = generate(model, ids, mask, **options).sequences
    torch.manual_seed(0)
    actual = generate(model, ids, mask, custom_generate=graph_sample, **options)
    assert torch.equal(actual.sequences, expected)

    end = int(expected[0, PROMPT + 3])
    streamed = []

    class Streamer:
        def put(self, value):
            streamed.append(value)

        def end(self):
            streamed.append("end")

    options = {"max_new_tokens": NEW, "eos_token_id": end, "pad_token_id": 0, "do_sample": False}
    expected = model.generate(input_ids=ids[:1], **options)
    actual = model.generate(
        input_ids=ids[:1], custom_generate=graph_sample, streamer=Streamer(), **options
    )
    assert torch.equal(actual, expected)
    assert streamed[-1] == "end"
    assert len(streamed) == 2 + actual.shape[1] - PROMPT
    both = model.generate(input_ids=ids, attention_mask=mask, **options)
    fast = model.generate(
        input_ids=ids, attention_mask=mask, custom_generate=graph_sample, **options
    )
    assert torch.equal(both, fast)


def test_steps_follow_tokens_that_are_written():
    model = adapted("llama", FULL_DECODE)
    ids = prompt(batch=2)[0]
    cache = static_cache(model)
    with torch.inference_mode():
        prefill(model, ids, cache, chunk=10)
        step = DecodeStep(model, cache, torch.tensor([5, 6]))
        step()
        step.tokens.copy_(torch.tensor([7, 8]))
        step()
    forced = torch.cat([ids, torch.tensor([[5, 7], [6, 8]])], dim=1)
    with torch.no_grad(), swaa.prompt_length(PROMPT):
        expected = model(forced).logits[:, -1]
    torch.testing.assert_close(step.logits, expected, atol=1e-5, rtol=1e-5)


def static_cache(model, prompt_tokens=PROMPT, new_tokens=NEW):
    return StaticSWAACache(
        model.config, plans_of(model), prompt_tokens=prompt_tokens, new_tokens=new_tokens
    )


class HostReads(TorchDispatchMode):
    """Counts the reads of a tensor's value, each of which would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten  # the last two: in inference mode
        self.count += func.overloadpacket in (aten._local_scalar_dense, aten.item, aten.is_nonzero)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    """Counts host reads; attention itself is left out, since on a CPU it may read for free."""
    monkeypatch.setattr(api, "_is_readable", lambda x: False)
    counter = HostReads()
    for name in ("tolist", "cpu", "numpy"):
        method = getattr(torch.Tensor, name)

        def counted(self, *args, _method=method, **kwargs):
            counter.count += 1
            return _method(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return counter


def without_attention(model):
    class Nothing:
        def run(self, call):
            return call.q

    for module in find_layers(model).full.values():
        vars(module)["swaa_layer"] = copy.copy(vars(module)["swaa_layer"])
        object.__setattr__(vars(module)["swaa_layer"], "backends", Nothing())


@pytest.mark.parametrize("padding", [0, PAD], ids=["even", "padded"])
@pytest.mark.parametrize(
    ("family", "config"),
    [
        *(pytest.param("qwen3", config, id=name) for name, config in CONFIGS.items()),
        pytest.param("qwen3_moe", CONFIGS["heads and tail"], id="experts"),
    ],
)
def test_the_host_waits_for_nothing(family, config, padding, reads):
    model = adapted(family, config)
    without_attention(model)
    ids = prompt()[0]
    starts = torch.tensor([0, padding], dtype=torch.int32) if padding else None
    reads.count = 0  # adapting a model reads
    with torch.inference_mode(), reads:
        logits = prefill(model, ids, static_cache(model), chunk=10, starts=starts)
        assert reads.count == 0
        cache = static_cache(model)
        logits = prefill(model, ids, cache, chunk=None, starts=starts)
        step = DecodeStep(model, cache, logits.argmax(-1), starts=starts)
        for _ in range(SLIDING.window + 2):  # until a ring is overwritten
            step()
        assert reads.count == 0
        bool(logits.isnan().any())
        assert reads.count == 1  # the counter counts


@pytest.mark.parametrize("declared", ["int", "tensor"])
def test_the_ordinary_path_reads_nothing_per_layer(declared, reads):
    counts = []
    for layers in (2, 4):
        model = adapted("qwen3", replace(MIXED_TAIL, full_decode=[1]), num_hidden_layers=layers)
        without_attention(model)
        end = PROMPT if declared == "int" else torch.tensor([PROMPT, PROMPT])
        cache = SWAACache(model.config, plans_of(model))
        reads.count = 0
        with torch.inference_mode(), swaa.prompt_length(end), reads:
            model(prompt()[0], **cache_argument(cache))
        counts.append(reads.count)
    assert counts[0] == counts[1] <= 2  # where the prompt ends, and whether rows are packed


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_compiled_layers_change_nothing_and_compile_once_for_all_layers(family):
    torch._dynamo.reset()
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    model = adapted(family, MIXED_TAIL)
    ids, mask = prompt(tokens=40)
    options = {"prefill_chunk_size": 10, "custom_generate": graph_sample, "max_new_tokens": NEW}
    expected = generate(model, ids, mask, **options)
    with compiled_layers(model, backend=backend):
        actual = generate(model, ids, mask, **options)
        made = len(graphs)
        generate(model, ids, mask, **options)
    assert torch.equal(actual.sequences, expected.sequences)
    for a, b in zip(actual.logits, expected.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    assert len(graphs) == made  # a second run compiles nothing
    deep = adapted(family, MIXED_TAIL, num_hidden_layers=6)
    torch._dynamo.reset()
    graphs.clear()
    with compiled_layers(deep, backend=backend):
        generate(deep, ids, mask, **options)
    assert len(graphs) == made  # nor do more layers


def test_compiled_layers_leave_no_trace():
    model = adapted("llama", SLIDING)
    before = [dict(vars(layer)) for layer in decoder_layers(model)]
    implementation = model.config._attn_implementation
    with compiled_layers(model, backend="eager"):
        assert model.config._attn_implementation != implementation
        assert all("forward" in vars(layer) for layer in decoder_layers(model))
    assert [dict(vars(layer)) for layer in decoder_layers(model)] == before
    assert model.config._attn_implementation == implementation


def test_layers_that_cannot_be_found_are_refused():
    model = adapted("llama", SLIDING)
    model.model.layers = model.model.layers[:2].append(torch.nn.Identity())
    with pytest.raises(UnsupportedModelError, match="no list of decoder layers"):
        decoder_layers(model)


def test_models_of_other_layers_are_refused():
    for family in OTHER_LAYERS:
        model = adapted(family, SLIDING)
        with pytest.raises(UnsupportedModelError, match=r"layer 0 of .* use the ordinary generate"):
            generate(model, *prompt(), custom_generate=graph_sample)


def test_a_sliding_layer_of_the_models_own_has_no_static_form():
    model = adapted("gemma3_text", SLIDING)
    with pytest.raises(ValueError, match=r"layer 0 keeps a .* no static form"):
        static_cache(model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda ids, model: {"input_ids": ids, "num_beams": 2}, "no beams"),
        (lambda ids, model: second_turn(model, ids), "pass no cache"),
        (
            lambda ids, model: {"inputs_embeds": model.get_input_embeddings()(ids)},
            "takes input_ids",
        ),
    ],
    ids=["beams", "kept", "embeddings"],
)
def test_what_the_fast_path_cannot_do_is_refused(given, message):
    model = adapted("llama", FULL_DECODE)
    options = given(prompt(batch=1)[0], model)
    with pytest.raises(ValueError, match=message):
        model.generate(custom_generate=graph_sample, max_new_tokens=2, **options)


def second_turn(model, ids, **options):
    first = generate(model, ids, torch.ones_like(ids), **options)
    asked = torch.cat([first.sequences, ids[:, :3]], dim=1)
    return {"input_ids": asked, **cache_argument(cache_of(first))}


def test_a_model_that_is_not_adapted_has_no_plans():
    with pytest.raises(ValueError, match="not adapted"):
        plans_of(tiny_model("llama"))


def test_more_tokens_than_the_cache_holds_are_refused():
    model = adapted("llama", FULL_DECODE)
    cache = static_cache(model, prompt_tokens=10, new_tokens=1)
    with pytest.raises(ValueError, match="holds 11 tokens; 41 do not fit"):
        prefill(model, prompt()[0], cache)
    with pytest.raises(ValueError, match="serves one prompt"):
        cache.reset()


@pytest.mark.parametrize("config", [FULL_DECODE, SLIDING], ids=["full", "sliding"])
def test_a_static_cache_serves_no_second_turn(config):
    model = adapted("llama", config)
    ids = prompt(batch=1)[0]
    asked = second_turn(model, ids, custom_generate=graph_sample)
    with pytest.raises(ValueError, match="serves one prompt and its answer"):
        model.generate(max_new_tokens=2, **asked)


def test_rows_of_a_step_stay_on_their_device():
    model = adapted("llama", SLIDING)
    cache = static_cache(model)
    with torch.inference_mode():
        prefill(model, prompt()[0], cache)
    rows = cache.start_decoding()
    assert rows.to("cpu") is rows
    with pytest.raises(ValueError, match="one device"):
        rows.to("meta")


def test_a_rolling_layer_needs_to_know_its_rows():
    model = adapted("llama", SLIDING)
    layer = static_cache(model).layers[0]
    states = torch.zeros(1, 2, 4, 16)
    phase = Phase(prompt_length=4)
    announce(RowInfo(batch=1, queries=4, q_offset=7, phase=phase, device=torch.device("cpu")))
    with pytest.raises(ValueError, match="adapted models only"):
        layer.update(states, states)
