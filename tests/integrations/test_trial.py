"""``adapt`` finds out whether a model's code can live with what swaa hands to it."""

import pytest
import torch

import swaa
from swaa import SWAAConfig
from swaa.attention import sdpa
from swaa.integrations.transformers.trial import TOKENS
from tests.integrations.families import FAMILIES, tiny_model
from tests.integrations.tiny_types import build, tiny_config

CONFIG = SWAAConfig(window=8, sink_tokens=3)
IDS = torch.randint(2, 97, (1, 20), generator=torch.Generator().manual_seed(3))


def untouched(model, before):
    assert not swaa.adaptation.is_adapted(model)
    assert model.config._attn_implementation == "eager"
    assert model.generate.__func__ is type(model).generate
    assert torch.equal(model.generate(IDS, max_new_tokens=3), before)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("doge", "end in AttributeError.*'dtype'.*trial=False adapts it untried"),
        ("minimax", "end in ValueError: MiniMax uses cache of its own"),
    ],
)
def test_a_model_that_cannot_live_with_mask_or_cache_is_refused(name, reason):
    model = build(tiny_config(name))
    before = model.generate(IDS, max_new_tokens=3)
    with pytest.raises(ValueError, match=reason):
        swaa.adapt(model, CONFIG, quiet=True)
    untouched(model, before)
    swaa.adapt(model, CONFIG, trial=False, quiet=True)
    assert swaa.adaptation.is_adapted(model)


def test_shared_keys_are_refused_by_name():
    config = tiny_config("gemma4_text")
    config.num_kv_shared_layers = 2
    with pytest.raises(ValueError, match="num_kv_shared_layers"):
        swaa.adapt(build(config), CONFIG, quiet=True)


def test_a_model_that_fails_without_swaa_too_is_adapted():
    model = tiny_model("llama")
    model.prepare_inputs_for_generation = None
    swaa.adapt(model, CONFIG, quiet=True)
    with torch.no_grad():
        assert model(IDS).logits.isfinite().all()
    del model.prepare_inputs_for_generation
    swaa.restore(model)


def passes_of(model, action):
    seen = []
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    action()
    hook.remove()
    return seen


def test_the_trial_is_two_short_passes_and_is_not_repeated():
    model = tiny_model("llama").train()
    state = torch.random.get_rng_state()
    first = passes_of(model, lambda: swaa.adapt(model, CONFIG, quiet=True))
    assert first == [(2, TOKENS), (2, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert passes_of(model, lambda: swaa.adapt(model, "naive", quiet=True)) == []
    swaa.restore(model)
    untried = passes_of(model, lambda: swaa.adapt(model, CONFIG, trial=False, quiet=True))
    assert untried == []
    assert passes_of(model, lambda: swaa.adapt(model, CONFIG, quiet=True)) == first


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trial_leaves_the_plans_of_the_configuration(family):
    tried, untried = tiny_model(family), tiny_model(family)
    swaa.adapt(tried, CONFIG, quiet=True)
    swaa.adapt(untried, CONFIG, trial=False, quiet=True)
    assert tried.generate.plans == untried.generate.plans
    for ours, theirs in zip(tried.modules(), untried.modules(), strict=True):
        carried = [vars(module).get("swaa_layer") for module in (ours, theirs)]
        assert (carried[0] is None) == (carried[1] is None)
        if carried[0] is not None:
            assert carried[0].plan == carried[1].plan
            assert carried[0].backends.requested == carried[1].backends.requested == "auto"


def test_layers_with_head_sizes_of_their_own_are_served(monkeypatch):
    model = build(tiny_config("gemma4_text"))
    assert {layer.self_attn.head_dim for layer in model.model.layers} == {16, 32}
    before = model.generate(IDS, max_new_tokens=3)
    adaptation = swaa.adapt(model, SWAAConfig(window=64), quiet=True)
    assert adaptation.backend == "sdpa"
    assert torch.equal(model.generate(IDS, max_new_tokens=3), before)
    swaa.restore(model)
    refusal = sdpa.refusal
    monkeypatch.setattr(
        sdpa, "refusal", lambda call: "too wide" if call.q.shape[3] > 16 else refusal(call)
    )
    adaptation = swaa.adapt(model, SWAAConfig(window=64), quiet=True)
    assert adaptation.backend == "sdpa for head_dim 16 and reference for head_dim 32"
    assert torch.equal(model.generate(IDS, max_new_tokens=3), before)
    swaa.restore(model)
    with pytest.raises(ValueError, match="backend 'sdpa': too wide"):
        swaa.adapt(model, SWAAConfig(window=64), backend="sdpa")
