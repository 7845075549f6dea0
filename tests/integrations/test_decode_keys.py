"""Generated rows that choose what they read: that they do, statistics of pages, bytes, words."""

from dataclasses import replace

import pytest
import torch

import swaa
from swaa import SWAAConfig
from swaa.attention.pages import PAGE, page_statistics
from swaa.integrations.transformers.cache import PagedLayer, SWAACache
from swaa.integrations.transformers.cache_name import cache_argument, cache_of
from swaa.integrations.transformers.fast import graph_sample
from tests.integrations.answers import (
    BY_PAGE,
    IDS,
    KEPT,
    TAIL,
    TOLERANCE,
    by_definition,
    logits_of,
    model_of,
)
from tests.integrations.test_phase_of_a_call import tokens


def reading_everything(config):
    """The configuration without the choice; None where that is full attention."""
    return None if config.full_layers == "every:1" else replace(config, decode_keys=0)


@pytest.fixture(params=BY_PAGE)
def config(request):
    return BY_PAGE[request.param]


def test_generated_rows_choose_and_rows_of_the_prompt_do_not(config):
    found = logits_of(by_definition(config))
    full = logits_of(model_of(reading_everything(config)).generate(IDS, **KEPT))
    torch.testing.assert_close(found[0], full[0], **TOLERANCE)  # a row of the prompt
    assert not torch.allclose(found[1], full[1], atol=1e-2)


def test_below_the_budget_it_is_full_decode():
    ids = tokens(60)
    few = SWAAConfig(**TAIL, full_decode=True, decode_keys=64)
    full = SWAAConfig(**TAIL, full_decode=True)
    for options in ({}, {"custom_generate": graph_sample}):
        found, expected = (model_of(c).generate(ids, **KEPT, **options) for c in (few, full))
        assert torch.equal(logits_of(found), logits_of(expected))


def assert_statistics(cache, starts):
    for layer in cache.layers:
        if not isinstance(layer, PagedLayer):
            continue
        for n, start in enumerate(starts):
            wanted = page_statistics(layer.keys[n : n + 1, :, start:].transpose(1, 2))[0]
            found = layer.statistics[n, : len(wanted)]
            torch.testing.assert_close(found, wanted)


def test_statistics_are_those_of_the_keys_after_every_step(config):
    model = model_of(config)
    ids = torch.cat([IDS, tokens(150, seed=3)])
    mask = torch.ones_like(ids)
    mask[1, :21] = 0
    cache = SWAACache(model.config, model.generate.plans)
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
    cache = cache_of(model_of(config).generate(IDS, **KEPT))
    layers = [layer for layer in cache.layers if isinstance(layer, PagedLayer)]
    keys = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    statistics = sum(layer.statistics.nbytes for layer in layers)
    assert cache.kv_bytes() == keys + statistics
    assert cache.peak_kv_bytes >= cache.kv_bytes()
    assert statistics >= len(layers) * layers[0].keys.nbytes * 2 // PAGE


def test_the_summary_says_it(config):
    summary = swaa.adapt(model_of(), config, quiet=True).summary
    assert f"{config.decode_keys} keys chosen in decoding" in summary


def test_declared_rows_read_everything(config):
    ids = torch.cat([IDS, tokens(40, seed=4)], 1)
    rows = (torch.arange(190) >= 150)[None]
    found = []
    everything = reading_everything(config)
    for one in (config, everything):
        with torch.no_grad(), swaa.attention_rows(rows):
            found.append(model_of(one)(ids, use_cache=False).logits)
    error = 1e-4 if everything is None else 0.0  # the model itself has other kernels
    torch.testing.assert_close(*found, atol=error, rtol=0.0)
    with torch.no_grad(), swaa.prompt_length(150):
        assert not torch.allclose(model_of(config)(ids, use_cache=False).logits, found[0])
