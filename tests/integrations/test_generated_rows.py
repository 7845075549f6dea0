"""Generated rows that differ by KV head, or choose keys: every mode against the definition."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import swaa
from swaa.integrations.transformers.cache_name import cache_argument, cache_of
from swaa.phase import full_attention
from tests.integrations.answers import (
    BY_HEAD,
    BY_PAGE,
    IDS,
    KEPT,
    TOLERANCE,
    by_definition,
    logits_of,
    model_of,
    options_of,
)
from tests.integrations.test_phase_of_a_call import GREEDY, tokens

CONFIGS = BY_HEAD | BY_PAGE


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.mark.parametrize("mode", ["plain", "chunks", "graph", "graph, chunks", "static"])
def test_every_mode_is_the_definition(config, mode):
    assert_is_the_definition(config, mode)


# Prompts are not compiled: one of each kind of generated row.
@pytest.mark.parametrize("name", ["full layers", "selected", "pages", "some choose", "full choose"])
def test_compiled_decoding_is_the_definition(name):
    assert_is_the_definition(CONFIGS[name], "compiled")


def assert_is_the_definition(config, mode):
    expected = logits_of(by_definition(config))
    found = logits_of(model_of(config).generate(IDS, **KEPT, **options_of(mode)))
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("mode", ["plain", "graph", "beams", "assistant", "self"])
def test_padding_beams_and_drafts(config, mode):
    ids = torch.cat([torch.zeros(1, 11, dtype=torch.long), IDS], 1)
    padded = {"attention_mask": (ids > 0).long()}
    beams = {"num_beams": 3} if mode == "beams" else {}
    expected = by_definition(config, **beams).sequences
    found = model_of(config).generate(ids, **padded, **GREEDY, **options_of(mode))
    assert torch.equal(found[:, 11:], expected)


def test_one_pass_over_prompt_and_answer_is_the_steps(config):
    output = by_definition(config)
    model = model_of(config)
    for cache in ({"use_cache": False}, cache_argument(model.generate.make_cache())):
        with torch.no_grad(), swaa.prompt_length(IDS.shape[1]):
            once = model(output.sequences[:, :-1], **cache).logits[0, IDS.shape[1] - 1 :]
        torch.testing.assert_close(once, logits_of(output)[:, 0], **TOLERANCE)


def test_a_second_turn(config):
    config = replace(config, dense_tail=0)  # a tail may have the prompt computed again
    model, reference = model_of(config), model_of()
    swaa.adapt(reference, config, backend="reference", quiet=True)
    turns = []
    for one, cache in ((model, {}), (reference, cache_argument(DynamicCache(config=model.config)))):
        first = one.generate(IDS, **KEPT, **cache)
        asked = torch.cat([first.sequences, tokens(30, seed=9)], 1).clamp(min=2)
        turns.append(one.generate(asked, **cache_argument(cache_of(first)), **KEPT))
    torch.testing.assert_close(*map(logits_of, turns), **TOLERANCE)


@pytest.mark.parametrize("name", ["tail", "pages", "selected"])
def test_a_second_turn_whose_tail_needs_freed_keys_is_computed_again(name):
    model = model_of(CONFIGS[name])
    first = model.generate(IDS, **KEPT)
    asked = torch.cat([first.sequences, tokens(30, seed=9)], 1).clamp(min=2)
    again = model.generate(asked, **cache_argument(cache_of(first)), **KEPT)
    expected = by_definition(CONFIGS[name], asked)
    torch.testing.assert_close(logits_of(again), logits_of(expected), **TOLERANCE)


def test_full_attention_is_full(config):
    with full_attention():
        found = model_of(config).generate(IDS, **KEPT)
    torch.testing.assert_close(logits_of(found), logits_of(model_of().generate(IDS, **KEPT)))
