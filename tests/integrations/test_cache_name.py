"""The cache is one argument with two names, of which Transformers' versions know one or both."""

import pytest
import torch

from swaa.integrations.transformers.cache_name import CACHE, NAMES, cache_in, cache_of
from tests.integrations.families import adapted
from tests.integrations.test_generate_modes import MIXED, generate, prompt


@pytest.mark.parametrize("name", NAMES)
def test_generate_takes_a_kept_cache_by_either_name(name):
    model = adapted("llama", MIXED)
    first = generate(model, *prompt(batch=1))
    ids = torch.cat([first.sequences, prompt(batch=1, tokens=6)[0]], dim=1)
    kept = cache_of(first)
    second = generate(model, ids, torch.ones_like(ids), **{name: kept})
    assert cache_of(second) is kept
    assert kept.get_seq_length() == second.sequences.shape[1] - 1


def test_both_names_at_once_are_refused():
    model = adapted("llama", MIXED)
    kept = cache_of(generate(model, *prompt(batch=1)))
    with pytest.raises(ValueError, match=f"cache and past_key_values are given.*pass {CACHE}"):
        generate(model, *prompt(batch=1), **dict.fromkeys(NAMES, kept))


def test_no_cache_is_none():
    assert cache_in({"cache": None, "use_cache": True}) is None
