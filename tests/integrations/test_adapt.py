"""adapt and restore: what is active, what travels with the checkpoint, what is refused."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, CompileConfig, DynamicCache

import swaa
from swaa import SWAAConfig
from swaa.integrations.transformers.cache import SWAACache
from swaa.integrations.transformers.cache_name import cache_argument, cache_of
from swaa.integrations.transformers.warm_up import ROOM, warm_up
from tests.integrations.families import FAMILIES, adapted, tiny_model
from tests.integrations.tiny_types import build, tiny_config

CONFIG = SWAAConfig(window=8, sink_tokens=3, full_layers=[1], full_decode=True, dense_tail=4)
WINDOW = SWAAConfig(window=8)
IDS = torch.randint(2, 97, (1, 40), generator=torch.Generator().manual_seed(3))


def logits(model, prompt=30):
    with torch.no_grad(), swaa.prompt_length(prompt):
        return model(IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_restore_leaves_no_trace(family):
    model = tiny_model(family)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    config, keys = model.config.to_dict(), set(model.state_dict())
    before = logits(model)
    swaa.adapt(model, CONFIG, quiet=True)
    assert not torch.equal(logits(model), before)
    model.generate(IDS, max_new_tokens=2)
    swaa.restore(model)
    assert torch.equal(logits(model), before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.config.to_dict() == config
    assert set(model.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.generate.__func__ is type(model).generate


def test_the_recipe_travels_with_the_checkpoint(tmp_path):
    model = adapted("qwen3", CONFIG)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert SWAAConfig.from_dict(loaded.config.swaa) == CONFIG
    assert swaa.adapt(loaded, quiet=True).config == CONFIG
    assert torch.equal(logits(loaded), expected)
    swaa.restore(loaded)
    assert SWAAConfig.from_dict(loaded.config.swaa) == CONFIG  # it was there before


def test_warming_up_runs_every_phase_and_leaves_random_numbers_and_answers_alone(monkeypatch):
    model, cold = tiny_model("llama"), tiny_model("llama")
    expected = swaa.adapt(cold, CONFIG, quiet=True)
    assert expected.warm_up_seconds is None
    rows = []
    monkeypatch.setattr(
        "swaa.adaptation.run_ahead",
        lambda *arguments: rows.append(arguments) or warm_up(*arguments),
    )
    state = torch.random.get_rng_state()
    adaptation = swaa.adapt(model, CONFIG, warm_up=True, quiet=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert rows == [(model, adaptation.plans)]
    assert adaptation.warm_up_seconds is not None
    assert f"warmed up in {adaptation.warm_up_seconds:.1f} s" in adaptation.summary
    assert torch.equal(model.generate(IDS, max_new_tokens=4), cold.generate(IDS, max_new_tokens=4))


def test_warming_up_takes_a_prompt_longer_than_the_window_where_positions_allow():
    model = tiny_model("llama")
    lengths = []
    model.generate = lambda **inputs: lengths.append(inputs["input_ids"].shape[1])
    plans = CONFIG.layers(4)
    warm_up(model, plans)
    model.config.max_position_embeddings = 50
    warm_up(model, plans)
    assert lengths == [ROOM + 8 + 3 + 4, 48]


def test_the_summary_says_what_is_active(capsys):
    adaptation = swaa.adapt(tiny_model("llama"), CONFIG)
    assert capsys.readouterr().out.strip() == adaptation.summary
    assert adaptation.summary == (
        "adapted 3 of 4 layers: window 8, 3 sinks, full layers 1, full decode, dense tail 4,"
        f" backend {adaptation.backend}"
    )
    assert [plan.full for plan in adaptation.plans] == [False, True, False, False]


@pytest.mark.filterwarnings("ignore:.*dropped")
def test_the_summary_leaves_out_layers_that_the_model_lacks():
    summary = swaa.adapt(
        tiny_model("llama"),
        SWAAConfig(window=8, full_layers=[1, 99], full_decode=[0, 98]),
        quiet=True,
    ).summary
    shown = "adapted 3 of 4 layers: window 8, 0 sinks, full layers 1, full decode in layers 0,"
    assert summary.startswith(shown)
    summary = swaa.adapt(
        tiny_model("llama"), SWAAConfig(window=8, full_layers=[99]), quiet=True
    ).summary
    assert summary.startswith("adapted 4 of 4 layers: window 8, 0 sinks, backend")


def test_linear_and_native_layers_stay_as_they_are():
    plans = swaa.adapt(tiny_model("qwen3_next"), SWAAConfig(window=8), quiet=True).plans
    assert [plan.full for plan in plans] == [True, False, True, False]
    plans = swaa.adapt(tiny_model("gemma3_text"), SWAAConfig(window=8), quiet=True).plans
    assert [plan.full for plan in plans] == [True, False, True, False]


def test_adapting_again_replaces_the_configuration():
    model = tiny_model("llama")
    before = logits(model)
    swaa.adapt(model, CONFIG, quiet=True)
    swaa.adapt(model, {"window": 100_000}, quiet=True)
    torch.testing.assert_close(logits(model), before)
    swaa.restore(model)
    assert torch.equal(logits(model), before)


def test_a_copy_of_an_adapted_model_generates_by_itself():
    model = adapted("llama", CONFIG)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(-1)
    assert not torch.equal(
        model.generate(IDS, max_new_tokens=4, do_sample=False),
        other.generate(IDS, max_new_tokens=4, do_sample=False),
    )


def test_generate_without_a_cache_and_with_the_stock_cache():
    model = adapted("llama", SWAAConfig(window=8, sink_tokens=3, full_decode=[2], dense_tail=4))
    options = {"max_new_tokens": 6, "do_sample": False}
    own = model.generate(IDS, **options)
    assert torch.equal(model.generate(IDS, use_cache=False, **options), own)
    stock = DynamicCache(config=model.config)
    assert torch.equal(model.generate(IDS, **cache_argument(stock), **options), own)


def test_a_cache_of_ours_in_direct_calls():
    model = adapted("llama", SWAAConfig(window=8, sink_tokens=3, dense_tail=4))
    whole = logits(model, prompt=30)
    cache = SWAACache(model.config, model.generate.plans)
    with torch.no_grad(), swaa.prompt_length(30):
        chunks = IDS.split([20, 10, 1, 1, 8], dim=1)
        parts = [model(chunk, **cache_argument(cache)).logits for chunk in chunks]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    assert cache.kv_bytes() == 4 * 2 * 11 * 2 * 16 * 4  # layers, k and v, slots, heads, dim, fp32


def test_a_later_turn_without_the_whole_conversation_is_refused():
    model = adapted("llama", SWAAConfig(window=8, sink_tokens=3, dense_tail=4))
    first = model.generate(IDS, max_new_tokens=3, return_dict_in_generate=True)
    with pytest.raises(ValueError, match="pass the whole conversation"):
        model.generate(
            IDS[:, :5],
            attention_mask=torch.ones(1, 47, dtype=torch.long),
            **cache_argument(cache_of(first)),
        )


def test_a_configuration_that_changes_nothing_is_refused():
    model = tiny_model("gemma3_text")  # its even layers slide already
    with pytest.raises(ValueError, match=r"no layer would slide.*layers 1, 3"):
        swaa.adapt(model, SWAAConfig(window=8, full_layers="odd"))
    assert swaa.adapt(model, SWAAConfig(window=None), quiet=True).config.window is None


def test_an_undeclared_prompt_length_is_refused():
    model = adapted("llama", CONFIG)
    with pytest.raises(ValueError, match="prompt length is not declared"):
        model(IDS)
    swaa.adapt(model, SWAAConfig(window=8, sink_tokens=3), quiet=True)
    model(IDS)  # nothing depends on it: no need to declare


def test_compiled_model_with_declared_prompt():
    model = adapted("llama", SWAAConfig(window=8, sink_tokens=3))
    with torch.no_grad():
        expected = model(IDS, use_cache=False).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(IDS, use_cache=False).logits, expected)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("gpt_oss", {}, "learned sink logits"),
        ("gemma2", {}, "soft-caps"),
        ("deepseek_v3", {}, "multi-head latent attention"),
        ("bloom", {}, "AttentionInterface"),
        ("mistral", {"sliding_window": 24}, "no full-attention layer"),
        ("gemma3", {}, "composite"),
    ],
)
def test_models_that_would_be_answered_wrongly_are_refused(name, options, reason):
    config = tiny_config(name)
    config.update(options)
    model = build(config)
    with pytest.raises(ValueError, match=reason):
        swaa.adapt(model, CONFIG)
    assert model.config._attn_implementation != "swaa"


@pytest.mark.parametrize(
    ("action", "error", "match"),
    [
        (lambda _: swaa.adapt(torch.nn.Linear(2, 2), CONFIG), TypeError, "model, got Linear"),
        (lambda _: swaa.adapt("gpt2", CONFIG), TypeError, "a loaded Transformers model, got str"),
        (lambda _: swaa.restore("gpt2"), TypeError, "a loaded Transformers model, got str"),
        (swaa.restore, ValueError, "nothing to restore"),
        (swaa.adapt, ValueError, "carries no 'swaa'"),
        (lambda m: swaa.adapt(m, ["fast"]), TypeError, r"a recipe or a path, got \['fast'\]"),
        (lambda m: swaa.adapt(m, CONFIG, backend="fast"), ValueError, "no .* backend 'fast'"),
    ],
)
def test_mistakes_are_named(action, error, match):
    with pytest.raises(error, match=f"expected.*{match}" if error is TypeError else match):
        action(tiny_model("llama"))


def test_dropout_is_refused():
    model = adapted("llama", WINDOW)
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="attention dropout"):
        model(IDS)


def mask_without(*slots, batch=1):
    mask = torch.ones(batch, 40, dtype=torch.long)
    mask[(-1, slice(*slots))] = 0
    return mask


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m: m(IDS, attention_mask=mask_without(10, 12)), "holes"),
        (lambda m: m(IDS, attention_mask=torch.ones(1, 1, 40, 40)), "makes its own mask"),
        (lambda m: m.generate_batch([[1, 2, 3]]), "continuous batching"),
        (lambda m: m.generate(IDS, cache_implementation="paged"), "continuous batching"),
        (
            lambda m: m.generate(IDS, attention_mask=mask_without(12, 14), prefill_chunk_size=8),
            "holes",
        ),
        (lambda m: m.generate(IDS, attention_mask=mask_without(38, 40)), "padded on the right"),
        (
            lambda m: m.generate(IDS.repeat(3, 1), attention_mask=mask_without(0, 40, batch=3)),
            r"prompt 2 of 3 \(from 0\) is empty",
        ),
    ],
)
def test_calls_that_would_be_answered_wrongly_are_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call(adapted("llama", WINDOW))


def test_a_model_loaded_with_our_implementation_but_not_adapted_says_so():
    model = adapted("llama", WINDOW)
    for layer in model.model.layers:
        del layer.self_attn.swaa_layer
    with pytest.raises(ValueError, match="not adapted"):
        model(IDS)


# Transformers 5.17 warns of offloaded layers, adapted or not.
@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
def test_layers_spread_by_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is an optional extra")
    model = adapted("llama", CONFIG)
    expected = model.generate(IDS, max_new_tokens=5, do_sample=False)
    accelerate.cpu_offload(model)  # a hook on every module moves its arguments
    assert torch.equal(model.generate(IDS, max_new_tokens=5, do_sample=False), expected)


def test_compiled_decoding_calls_one_operator():
    """Under aot_eager; under eager see test_static_cache_compiled_without_graph_breaks."""
    model = adapted("llama", CONFIG)
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    expected = model.generate(IDS, disable_compile=True, **options)
    compiled = CompileConfig(backend="aot_eager", fullgraph=True)
    compiled._compile_all_devices = True
    assert torch.equal(model.generate(IDS, compile_config=compiled, **options), expected)


def test_holes_are_noticed_in_short_passes_too():
    model = adapted("llama", WINDOW)
    mask = torch.nn.functional.pad(mask_without(20, 22), (0, 8), value=1)
    first = model(IDS, use_cache=True)
    with pytest.raises(ValueError, match="holes"):
        model(IDS[:, :8], attention_mask=mask, **cache_argument(cache_of(first)))


def test_a_failed_adaptation_leaves_the_earlier_one_in_force():
    model = adapted("llama", CONFIG)
    before = logits(model)
    with pytest.raises(ValueError, match="no layer would slide"):
        swaa.adapt(model, SWAAConfig(window=8, full_layers="first:1"))
    assert torch.equal(logits(model), before)


def test_a_reset_cache_starts_afresh():
    model = adapted("llama", SWAAConfig(window=8, sink_tokens=3, full_decode=[2]))
    cache = SWAACache(model.config, model.generate.plans)
    with torch.no_grad(), swaa.prompt_length(40):
        first = model(IDS, **cache_argument(cache)).logits
        cache.reset()
        assert cache.get_seq_length() == cache.kv_bytes() == 0
        assert torch.equal(model(IDS, **cache_argument(cache)).logits, first)


def test_the_first_call_says_where_nothing_slides(capsys, caplog):
    model = tiny_model("llama")
    swaa.adapt(model, SWAAConfig(window=40, sink_tokens=4))
    for _ in range(2):
        model.generate(IDS, max_new_tokens=2)
    assert [record.message for record in caplog.records] == [
        "nothing slides: window 40 and 4 sinks cover this prompt of 40 tokens; it is full attention"
        " (said of the first call only)"
    ]
    assert "nothing slides" not in capsys.readouterr().out
    swaa.adapt(model, SWAAConfig(window=512))
    assert "nothing slides: window 512 covers all 512 tokens that" in capsys.readouterr().out
    caplog.clear()
    swaa.adapt(model, CONFIG)
    model.generate(IDS, max_new_tokens=2)
    swaa.adapt(model, SWAAConfig(window=40), quiet=True)
    model.generate(IDS, max_new_tokens=2)
    assert caplog.records == []
