"""Generated rows that choose what they read: every mode of generate against the definition."""

import dataclasses
import functools

import pytest
import torch
from transformers import DynamicCache

import swaa
from swaa import SWAAConfig
from swaa.attention.pages import PAGE, page_statistics
from swaa.integrations.transformers.cache import PagedLayer, SWAACache
from swaa.integrations.transformers.cache_name import cache_argument, cache_of
from swaa.integrations.transformers.fast import graph_sample
from swaa.phase import full_attention
from tests.integrations import answers
from tests.integrations.answers import KEPT, logits_of, options_of
from tests.integrations.test_phase_of_a_call import GREEDY, sharp_model, tokens

KNOBS = {"window": 20, "sink_tokens": 3, "dense_tail": 4}
MANY = {**KNOBS, "full_layers": [3], "selected_layers": [1, 2], "selected_keys": 64}
CONFIGS = {
    "all": SWAAConfig(**KNOBS, full_decode=True, decode_keys=32),
    "some": SWAAConfig(**KNOBS, full_layers=[1], full_decode=[0], decode_keys=32),
    "selected": SWAAConfig(**MANY, decode_keys=48),
    "full": SWAAConfig(window=20, sink_tokens=3, full_layers="every:1", decode_keys=32),
}
IDS = tokens(150)


def reading_everything(config):
    """The configuration without the choice; None where that is full attention."""
    if config.full_layers == "every:1":
        return None
    return dataclasses.replace(config, decode_keys=0)


@functools.cache  # every mode is compared with the same answer
def by_definition(config, **options):
    return answers.by_definition(sharp_model(), config, IDS, **options)


@functools.cache
def logits_reading_everything(config):
    return logits_of(sharp_model(reading_everything(config)).generate(IDS, **KEPT))


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.mark.parametrize("mode", ["plain", "chunks", "graph", "static", "compiled"])
def test_generate_reads_what_the_definition_chooses(config, mode):
    expected = logits_of(by_definition(config))
    found = logits_of(sharp_model(config).generate(IDS, **KEPT, **options_of(mode)))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    full = logits_reading_everything(config)
    torch.testing.assert_close(found[0], full[0], atol=2e-4, rtol=1e-4)  # a row of the prompt
    assert not torch.allclose(found[1], full[1], atol=1e-2)


def test_below_the_budget_it_is_full_decode():
    ids = tokens(60)
    few = SWAAConfig(**KNOBS, full_decode=True, decode_keys=64)
    full = SWAAConfig(**KNOBS, full_decode=True)
    for options in ({}, {"custom_generate": graph_sample}):
        found, expected = (sharp_model(c).generate(ids, **KEPT, **options) for c in (few, full))
        assert torch.equal(logits_of(found), logits_of(expected))


@pytest.mark.parametrize("mode", ["plain", "graph", "beams", "assistant", "self"])
def test_padding_beams_and_drafts(config, mode):
    model, ids = sharp_model(config), torch.cat([torch.zeros(1, 11, dtype=torch.long), IDS], 1)
    padded = {"attention_mask": (ids > 0).long()}
    beams = {"num_beams": 3} if mode == "beams" else {}
    expected = by_definition(config, **beams).sequences
    found = model.generate(ids, **padded, **GREEDY, **options_of(mode))
    assert torch.equal(found[:, 11:], expected)


def test_one_pass_over_prompt_and_answer_is_the_steps(config):
    output = by_definition(config)
    model = sharp_model(config)
    with torch.no_grad(), swaa.prompt_length(IDS.shape[1]):
        once = model(output.sequences[:, :-1], use_cache=False).logits[0, IDS.shape[1] - 1 :]
    torch.testing.assert_close(once, logits_of(output)[:, 0], atol=2e-4, rtol=1e-4)


def test_a_second_turn_continues_the_pages(config):
    config = dataclasses.replace(config, dense_tail=0)  # a tail may have the prompt computed again
    model = sharp_model(config)
    first = model.generate(IDS, **KEPT)
    asked = torch.cat([first.sequences, tokens(30, seed=9)], 1)
    again = model.generate(asked, **cache_argument(cache_of(first)), **KEPT)
    stock = DynamicCache(config=model.config)
    reference = sharp_model()
    swaa.adapt(reference, config, backend="reference", quiet=True)
    kept = reference.generate(IDS, **KEPT, **cache_argument(stock))
    expected = reference.generate(asked, **cache_argument(cache_of(kept)), **KEPT)
    torch.testing.assert_close(logits_of(again), logits_of(expected), atol=2e-4, rtol=1e-4)


def assert_statistics(cache, starts):
    for layer in cache.layers:
        if not isinstance(layer, PagedLayer):
            continue
        for n, start in enumerate(starts):
            wanted = page_statistics(layer.keys[n : n + 1, :, start:].transpose(1, 2))[0]
            found = layer.statistics[n, : len(wanted)]
            torch.testing.assert_close(found, wanted)


def test_statistics_are_those_of_the_keys_after_every_step(config):
    model = sharp_model(config)
    ids = torch.cat([IDS, tokens(150, seed=3)])
    mask = torch.ones_like(ids)
    mask[1, :21] = 0
    cache = SWAACache(model.config, config.layers(4))
    cache.activate_past_recording()
    with torch.no_grad(), swaa.prompt_length(150):
        model(ids, attention_mask=mask, **cache_argument(cache))
        for n, new in enumerate([1, 3, 1, 17, 1, 40]):
            mask = torch.cat([mask, torch.ones(2, new, dtype=torch.long)], 1)
            step = tokens(2 * new, seed=n).view(2, new)
            model(step, attention_mask=mask, **cache_argument(cache))
            assert_statistics(cache, [0, 21])
            if new == 17:  # drafts are taken back, and others come
                cache.crop(-9)
                mask = mask[:, :-9]
    assert any(isinstance(layer, PagedLayer) for layer in cache.layers)


def test_bytes_of_statistics_are_counted(config):
    model = sharp_model(config)
    cache = cache_of(model.generate(IDS, **KEPT))
    layers = [layer for layer in cache.layers if isinstance(layer, PagedLayer)]
    keys = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    statistics = sum(layer.statistics.nbytes for layer in layers)
    assert cache.kv_bytes() == keys + statistics
    assert cache.peak_kv_bytes >= cache.kv_bytes()
    assert statistics >= len(layers) * layers[0].keys.nbytes * 2 // PAGE


def test_the_summary_says_it(config):
    summary = swaa.adapt(sharp_model(), config, quiet=True).summary
    assert f"{config.decode_keys} keys chosen in decoding" in summary


def test_declared_rows_read_everything(config):
    ids = torch.cat([IDS, tokens(40, seed=4)], 1)
    rows = (torch.arange(190) >= 150)[None]
    found = []
    everything = reading_everything(config)
    for one in (config, everything):
        with torch.no_grad(), swaa.attention_rows(rows):
            found.append(sharp_model(one)(ids, use_cache=False).logits)
    error = 1e-4 if everything is None else 0.0  # the model itself has other kernels
    torch.testing.assert_close(*found, atol=error, rtol=0.0)
    with torch.no_grad(), swaa.prompt_length(150):
        assert not torch.allclose(sharp_model(config)(ids, use_cache=False).logits, found[0])


def test_full_attention_is_full(config):
    with full_attention():
        found = sharp_model(config).generate(IDS, **KEPT)
    torch.testing.assert_close(logits_of(found), logits_of(sharp_model().generate(IDS, **KEPT)))
