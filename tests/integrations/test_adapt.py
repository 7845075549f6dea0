"""adapt and restore: what is active, what travels with the checkpoint, what is refused."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import swaa
from swaa import SWAAConfig
from swaa.integrations.transformers.cache import SWAACache
from swaa.integrations.transformers.cache_name import cache_argument, cache_of
from swaa.integrations.transformers.warm_up import ROOM, warm_up
from tests.integrations.families import COMMON, FAMILIES, tiny_model

CONFIG = SWAAConfig(window=8, sink_tokens=3, full_layers=[1], full_decode=True, dense_tail=4)
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
    model = tiny_model("qwen3")
    swaa.adapt(model, CONFIG, quiet=True)
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
    model = tiny_model("llama")
    swaa.adapt(model, CONFIG, quiet=True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(-1)
    assert not torch.equal(
        model.generate(IDS, max_new_tokens=4, do_sample=False),
        other.generate(IDS, max_new_tokens=4, do_sample=False),
    )


def test_generate_without_a_cache_and_with_the_stock_cache():
    from transformers import DynamicCache

    config = SWAAConfig(window=8, sink_tokens=3, full_decode=[2], dense_tail=4)
    model = tiny_model("llama")
    swaa.adapt(model, config, quiet=True)
    options = {"max_new_tokens": 6, "do_sample": False}
    own = model.generate(IDS, **options)
    assert torch.equal(model.generate(IDS, use_cache=False, **options), own)
    stock = DynamicCache(config=model.config)
    assert torch.equal(model.generate(IDS, **cache_argument(stock), **options), own)


def test_a_cache_of_ours_in_direct_calls():
    config = SWAAConfig(window=8, sink_tokens=3, dense_tail=4)
    model = tiny_model("llama")
    plans = swaa.adapt(model, config, quiet=True).plans
    whole = logits(model, prompt=30)
    cache = SWAACache(model.config, plans)
    with torch.no_grad(), swaa.prompt_length(30):
        chunks = IDS.split([20, 10, 1, 1, 8], dim=1)
        parts = [model(chunk, **cache_argument(cache)).logits for chunk in chunks]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    assert cache.kv_bytes() == 4 * 2 * 11 * 2 * 16 * 4  # layers, k and v, slots, heads, dim, fp32


def test_a_later_turn_without_the_whole_conversation_is_refused():
    config = SWAAConfig(window=8, sink_tokens=3, dense_tail=4)
    model = tiny_model("llama")
    swaa.adapt(model, config, quiet=True)
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
    model = tiny_model("llama")
    swaa.adapt(model, CONFIG, quiet=True)
    with pytest.raises(ValueError, match="prompt length is not declared"):
        model(IDS)
    swaa.adapt(model, SWAAConfig(window=8, sink_tokens=3), quiet=True)
    model(IDS)  # nothing depends on it: no need to declare


def test_compiled_model_with_declared_prompt():
    model = tiny_model("llama")
    swaa.adapt(model, SWAAConfig(window=8, sink_tokens=3), quiet=True)
    with torch.no_grad():
        expected = model(IDS, use_cache=False).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(IDS, use_cache=False).logits, expected)


def refused(family, match, **options):
    config = AutoConfig.for_model(family, **{**COMMON, **options})
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=match):
        swaa.adapt(model, CONFIG)
    assert model.config._attn_implementation != "swaa"


def test_learned_sink_logits_are_refused():
    refused("gpt_oss", "learned sink logits", num_local_experts=4, num_experts_per_tok=2)


def test_soft_capping_is_refused():
    refused("gemma2", "soft-caps")


def test_latent_attention_is_refused():
    refused(
        "deepseek_v3",
        "multi-head latent attention",
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_group=1,
        topk_group=1,
    )


def test_models_without_the_attention_interface_are_refused():
    refused("bloom", "AttentionInterface", n_layer=2, n_head=4)


def test_models_that_slide_everywhere_are_refused():
    refused("mistral", "no full-attention layer", sliding_window=24)


def test_composite_models_are_refused():
    config = AutoConfig.for_model("gemma3")
    config.text_config.update({**COMMON, "num_hidden_layers": 1})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="composite"):
        swaa.adapt(model, CONFIG)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="expected a loaded Transformers model"):
        swaa.adapt(torch.nn.Linear(2, 2), CONFIG)


def test_a_model_without_configuration_says_so():
    with pytest.raises(ValueError, match="carries no 'swaa'"):
        swaa.adapt(tiny_model("llama"))


def test_restoring_twice_is_an_error():
    with pytest.raises(ValueError, match="nothing to restore"):
        swaa.restore(tiny_model("llama"))


def test_an_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match="no attention backend 'fast'"):
        swaa.adapt(tiny_model("llama"), CONFIG, backend="fast")


def test_dropout_is_refused():
    model = tiny_model("llama")
    swaa.adapt(model, SWAAConfig(window=8), quiet=True)
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="attention dropout"):
        model(IDS)


def test_masks_with_holes_are_refused():
    model = tiny_model("llama")
    swaa.adapt(model, SWAAConfig(window=8), quiet=True)
    mask = torch.ones_like(IDS)
    mask[0, 10:12] = 0
    with pytest.raises(ValueError, match="holes"):
        model(IDS, attention_mask=mask)


def test_dense_masks_are_refused():
    model = tiny_model("llama")
    swaa.adapt(model, SWAAConfig(window=8), quiet=True)
    with pytest.raises(ValueError, match="makes its own mask"):
        model(IDS, attention_mask=torch.ones(1, 1, 40, 40))


def test_continuous_batching_is_refused():
    model = tiny_model("llama")
    swaa.adapt(model, SWAAConfig(window=8), quiet=True)
    with pytest.raises(ValueError, match="continuous batching"):
        model.generate_batch([[1, 2, 3]])
    with pytest.raises(ValueError, match="continuous batching"):
        model.generate(IDS, cache_implementation="paged")


def test_a_model_loaded_with_our_implementation_but_not_adapted_says_so():
    model = tiny_model("llama")
    swaa.adapt(model, SWAAConfig(window=8), quiet=True)
    for layer in model.model.layers:
        del layer.self_attn.swaa_layer
    with pytest.raises(ValueError, match="not adapted"):
        model(IDS)


# Transformers 5.17 warns of offloaded layers, adapted or not.
@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
def test_layers_spread_by_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is an optional extra")
    model = tiny_model("llama")
    swaa.adapt(model, CONFIG, quiet=True)
    expected = model.generate(IDS, max_new_tokens=5, do_sample=False)
    accelerate.cpu_offload(model)  # a hook on every module moves its arguments
    assert torch.equal(model.generate(IDS, max_new_tokens=5, do_sample=False), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_decoding_calls_one_operator(backend):
    from transformers import CompileConfig

    model = tiny_model("llama")
    swaa.adapt(model, CONFIG, quiet=True)
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    expected = model.generate(IDS, disable_compile=True, **options)
    compiled = CompileConfig(backend=backend, fullgraph=True)
    compiled._compile_all_devices = True
    assert torch.equal(model.generate(IDS, compile_config=compiled, **options), expected)


def test_holes_are_noticed_in_short_passes_too():
    model = tiny_model("llama")
    swaa.adapt(model, SWAAConfig(window=8), quiet=True)
    mask = torch.ones(1, 48, dtype=torch.long)
    mask[0, 20:22] = 0
    first = model(IDS, use_cache=True)
    with pytest.raises(ValueError, match="holes"):
        model(IDS[:, :8], attention_mask=mask, **cache_argument(cache_of(first)))
    with pytest.raises(ValueError, match="holes"):
        model.generate(IDS, attention_mask=mask[:, 8:], prefill_chunk_size=8)


def test_prompts_padded_on_the_right_are_refused():
    model = tiny_model("llama")
    swaa.adapt(model, SWAAConfig(window=8), quiet=True)
    mask = torch.ones_like(IDS)
    mask[0, 38:] = 0
    with pytest.raises(ValueError, match="padded on the right"):
        model.generate(IDS, attention_mask=mask, max_new_tokens=2)


def test_an_empty_prompt_in_a_batch_is_named():
    model = tiny_model("llama")
    swaa.adapt(model, SWAAConfig(window=8), quiet=True)
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[1] = 0
    with pytest.raises(ValueError, match=r"prompt 1 of 3 \(from 0\) is empty"):
        model.generate(IDS.repeat(3, 1), attention_mask=mask, max_new_tokens=2)


def test_a_failed_adaptation_leaves_the_earlier_one_in_force():
    model = tiny_model("llama")
    swaa.adapt(model, CONFIG, quiet=True)
    before = logits(model)
    with pytest.raises(ValueError, match="no layer would slide"):
        swaa.adapt(model, SWAAConfig(window=8, full_layers="first:1"))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("action", [lambda m: swaa.adapt(m, CONFIG), swaa.restore])
def test_a_name_is_no_model(action):
    with pytest.raises(TypeError, match="expected a loaded Transformers model, got str"):
        action("gpt2")


def test_a_list_is_no_configuration():
    with pytest.raises(TypeError, match=r"expected the name of a recipe or a path, got \['fast'\]"):
        swaa.adapt(tiny_model("llama"), ["fast"])


def test_a_reset_cache_starts_afresh():
    config = SWAAConfig(window=8, sink_tokens=3, full_decode=[2])
    model = tiny_model("llama")
    plans = swaa.adapt(model, config, quiet=True).plans
    cache = SWAACache(model.config, plans)
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
