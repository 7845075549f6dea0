"""Full decode in some KV heads: what tells them from layers, drafts, bytes, words."""

import copy
import pickle

import pytest
import torch

import swaa
from swaa import SWAAConfig
from swaa.integrations.transformers.cache import RollingLayer, SWAACache, layer_bytes
from swaa.integrations.transformers.cache_name import cache_argument, cache_of
from swaa.integrations.transformers.fast import graph_sample
from swaa.integrations.transformers.head_cache import HeadwiseLayer
from swaa.plan import price
from tests.integrations.answers import (
    BY_HEAD,
    HEADS,
    IDS,
    KEPT,
    KNOBS,
    TOLERANCE,
    by_definition,
    logits_of,
    model_of,
)
from tests.integrations.test_phase_of_a_call import GREEDY, tokens


@pytest.fixture(params=BY_HEAD)
def config(request):
    return BY_HEAD[request.param]


def test_heads_differ_from_all_and_from_none(config):
    found = logits_of(by_definition(config))
    for decode in (True, [3]):
        other = SWAAConfig.from_dict({**config.to_dict(), "full_decode": decode})
        assert not torch.allclose(found[1], logits_of(by_definition(other))[1], atol=1e-2)


def test_all_heads_of_layers_are_those_layers():
    heads = SWAAConfig(**KNOBS, full_decode={"1": [0, 1, 2, 3], "3": [3, 2, 1, 0]})
    layers = SWAAConfig(**KNOBS, full_decode=[1, 3])
    assert swaa.adapt(model_of(), heads, quiet=True).plans == layers.layers(4)
    found, expected = (logits_of(model_of(c).generate(IDS, **KEPT)) for c in (heads, layers))
    assert torch.equal(found, expected)


def test_drafts_taken_back_leave_no_trace(config):
    model = model_of(config)
    cache = model.generate.make_cache()
    cache.activate_past_recording()
    assert cache.is_croppable
    more = tokens(6, seed=5)
    with torch.no_grad(), swaa.prompt_length(150):
        model(IDS, **cache_argument(cache))
        model(tokens(9, seed=4), **cache_argument(cache))
        cache.crop(-9)
        found = model(more, **cache_argument(cache)).logits
        once = model(torch.cat([IDS, more], 1), use_cache=False).logits[:, 150:]
    torch.testing.assert_close(found, once, **TOLERANCE)


@pytest.mark.parametrize("name", ["heads", "tail", "full layers"])
@pytest.mark.parametrize("chunk", [None, 40])
def test_bytes_are_those_of_the_plan(name, chunk):
    config, model = BY_HEAD[name], model_of()
    priced = price(model.config, config, prompt_length=150, chunk=chunk, dtype="float32").cost
    swaa.adapt(model, config, quiet=True)
    cache = model.generate.make_cache()
    with torch.no_grad(), swaa.prompt_length(150):
        for ids in IDS.split(chunk or 150, dim=1):
            model(ids, **cache_argument(cache))
    assert cache.kv_bytes() == priced.kv_steady_bytes
    assert cache.peak_kv_bytes == priced.kv_peak_bytes
    for layer, cost in zip(cache.layers, priced.layers, strict=True):
        assert layer_bytes(layer) == cost.kv_bytes
        held = [x for part in getattr(layer, "parts", [layer]) for x in (part.keys, part.values)]
        assert sum(x.untyped_storage().nbytes() for x in held) == cost.kv_bytes


def test_a_graph_holds_what_heads_keep():
    output = model_of(BY_HEAD["tail"]).generate(IDS, **KEPT, custom_generate=graph_sample)
    token = 2 * 16 * 4  # key and value of one head in float32
    kept = sum(map(len, HEADS.values()))
    room = 150 + GREEDY["max_new_tokens"]
    expected = token * (kept * room + (16 - kept) * 23)
    assert cache_of(output).kv_bytes() == expected


def test_what_attention_got_is_not_kept():
    model = model_of(BY_HEAD["heads"])
    seen = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    cache = cache_of(model.generate(IDS, **KEPT, prefill_chunk_size=40))
    hook.remove()
    assert len(seen) > 5
    assert not any(rows.parts for rows in seen)
    assert [type(layer) for layer in cache.layers[:3]] == [HeadwiseLayer] * 3
    assert isinstance(cache.layers[0].parts[1], RollingLayer)
    assert cache.has_evicted()


def test_training_rows_and_gradients():
    config = BY_HEAD["tail"]
    ids = torch.cat([IDS, tokens(40, seed=4)], 1)
    answer = (torch.arange(190) >= 150)[None]
    found = []
    for backend in ("reference", "sdpa"):
        model = model_of()
        swaa.adapt(model, config, backend=backend, quiet=True)
        with swaa.attention_rows(answer):
            logits = model(ids, use_cache=False).logits
        logits[:, 150:].square().mean().backward()
        found.append([logits, *(p.grad for p in model.parameters())])
    with torch.no_grad(), swaa.prompt_length(150):
        once = model_of(config)(ids, use_cache=False).logits
    torch.testing.assert_close(found[0][0], once, **TOLERANCE)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_a_cache_is_reset_and_copied_and_a_configuration_pickled(config):
    model = model_of(config)
    cache = SWAACache(model.config, model.generate.plans)
    with torch.no_grad(), swaa.prompt_length(150):
        found = model(IDS, **cache_argument(cache)).logits
        cache.reset()
        again = model(IDS, **cache_argument(cache)).logits
        assert torch.equal(found, again)
        other = copy.deepcopy(cache)
        step = tokens(1, seed=7)
        one, two = (model(step, **cache_argument(c)).logits for c in (cache, other))
        assert torch.equal(one, two)
    assert pickle.loads(pickle.dumps(config)) == config


def test_the_summary_names_them():
    adaptation = swaa.adapt(model_of(), BY_HEAD["heads"], quiet=True)
    assert "full decode in KV heads 0:1,1:0+3,2:1+2+3,3:0+1+2+3" in adaptation.summary


def test_heads_beyond_the_model_are_dropped_with_one_warning():
    config = SWAAConfig(**KNOBS, full_decode={"0": [1, 4], "9": [0]})
    with pytest.warns(UserWarning, match="layers 9 and KV heads 0:4 dropped"):
        plans = swaa.adapt(model_of(), config, quiet=True).plans
    assert plans == SWAAConfig(**KNOBS, full_decode={"0": [1]}).layers(4, [4] * 4)
