"""Where the prompt ends, by what reaches the model; second turns; drafts on a kept cache."""

import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils.peft_utils import check_peft_version

import swaa
from swaa import SWAAConfig
from swaa.integrations.transformers.cache_name import cache_argument, cache_of
from swaa.integrations.transformers.fast import graph_sample
from tests.integrations.families import layer_types, tiny_model
from tests.integrations.loop_model import MASKS, build_masks, rows_of
from tests.integrations.test_phase_of_a_call import (
    FULL_DECODE,
    GREEDY,
    MIXED_TAIL,
    SLIDING,
    sharp_model,
    tokens,
)

pytestmark = pytest.mark.filterwarnings(  # of PEFT, and of the judge's own implementation
    "ignore:Position ids are not supported",
    "ignore:.is_gradient_checkpointing",
    "ignore:the model is adapted",
)
VIRTUAL = 6
METHODS = ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"]


PEFT = pytest.importorskip("peft", reason="peft is an optional extra")


def transformers_refuses_peft():
    try:
        check_peft_version(MIN_PEFT_VERSION)
    except ValueError:
        return True
    return False


needs_newer_peft = pytest.mark.skipif(
    transformers_refuses_peft(), reason="Transformers asks for a newer PEFT"
)


def tuned_model(method, config=FULL_DECODE):
    base = sharp_model()
    settings = {"task_type": "CAUSAL_LM", "num_virtual_tokens": VIRTUAL}
    if method == "PromptEncoderConfig":
        settings["encoder_hidden_size"] = 16
    torch.manual_seed(3)
    tuned = PEFT.get_peft_model(base, getattr(PEFT, method)(**settings)).eval()
    swaa.adapt(base, config, quiet=True)
    return tuned, base


def tuned_logits(tuned, base, ids, config):
    """Logits of the last row under a mask made in loops, virtual tokens before the prompt."""
    slots = VIRTUAL + ids.shape[1]
    masks = build_masks(
        config, layer_types(base), [0], slots, rows_of(slots, config.dense_tail, slots)
    )
    rows = slice(VIRTUAL, None) if "PREFIX" in str(tuned.active_peft_config.peft_type) else slice(0)
    MASKS.clear()
    MASKS.update(
        {i: m[:, rows] if rows.start else m for i, m in masks.items()}  # prefixes have no rows
    )
    base.set_attn_implementation("swaa_loop")
    try:
        with torch.no_grad():
            return tuned(input_ids=ids, use_cache=False).logits[:, -1]
    finally:
        base.set_attn_implementation("swaa")


@needs_newer_peft
@pytest.mark.parametrize(
    ("method", "options"),
    [*((method, {}) for method in METHODS), ("PromptTuningConfig", {"use_cache": False})],
)
def test_virtual_tokens_are_part_of_the_prompt(method, options):
    tuned, base = tuned_model(method)
    ids = tokens(41)
    output = tuned.generate(
        input_ids=ids, output_logits=True, return_dict_in_generate=True, **GREEDY, **options
    )
    torch.testing.assert_close(
        output.logits[0], tuned_logits(tuned, base, ids, FULL_DECODE), atol=1e-4, rtol=1e-4
    )
    again = tuned.generate(input_ids=ids, **GREEDY)
    assert torch.equal(output.sequences, again)


@needs_newer_peft
@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 10},
        {"cache_implementation": "static"},
        {"custom_generate": graph_sample},
    ],
)
def test_modes_that_cannot_count_virtual_tokens_are_refused(options):
    tuned, _ = tuned_model("PromptTuningConfig")
    with pytest.raises(ValueError, match="prompt tuning adds virtual tokens"):
        tuned.generate(input_ids=tokens(41), **GREEDY, **options)


@needs_newer_peft
def test_padding_behind_virtual_tokens_is_refused():
    tuned, _ = tuned_model("PromptTuningConfig")
    ids = tokens(41).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    with pytest.raises(ValueError, match="holes"):
        tuned.generate(input_ids=ids, attention_mask=mask, **GREEDY)


@pytest.mark.parametrize("method", METHODS)
def test_a_peft_that_loses_the_cache_is_refused(method, monkeypatch):
    monkeypatch.setattr("swaa.integrations.transformers.prompt.MIN_PEFT_VERSION", "1000")
    tuned, _ = tuned_model(method)
    with pytest.raises(ValueError, match="need a PEFT that the installed Transformers supports"):
        tuned.generate(input_ids=tokens(41), **GREEDY)


def first_turn(config, **options):
    model = sharp_model(config)
    return model, model.generate(tokens(41), return_dict_in_generate=True, **GREEDY, **options)


@pytest.mark.parametrize("config", [FULL_DECODE, MIXED_TAIL, SLIDING], ids=["full", "tail", "no"])
@pytest.mark.parametrize("new", [1, 6, 30])
def test_only_new_tokens_without_a_mask_are_refused(config, new):
    model, first = first_turn(config)
    with pytest.raises(ValueError, match="pass the whole conversation as input_ids, or only its"):
        model.generate(tokens(new, seed=9), **cache_argument(cache_of(first)), **GREEDY)


@pytest.mark.parametrize("config", [FULL_DECODE, SLIDING], ids=["full", "no"])
def test_only_new_tokens_with_a_mask_of_all_are_the_second_turn(config):
    model, first = first_turn(config)
    asked = torch.cat([first.sequences, tokens(6, seed=9)], 1)
    kept = copy.deepcopy(cache_of(first))
    whole = model.generate(asked, **cache_argument(kept), **GREEDY)
    cached = cache_of(first).get_seq_length()
    new = model.generate(
        asked[:, cached:],
        attention_mask=torch.ones_like(asked),
        **cache_argument(cache_of(first)),
        **GREEDY,
    )
    assert torch.equal(new[:, -6:], whole[:, -6:])


@pytest.mark.parametrize(
    ("new", "options", "reason"),
    [
        (
            6,
            {"attention_mask": torch.ones(1, 50, dtype=torch.long)},
            "got 6 tokens and a mask of 50 for a cache that holds 46",
        ),
        (90, {}, "do not begin with the text that the cache holds"),
    ],
    ids=["a mask of something else", "a long message alone"],
)
@pytest.mark.parametrize("cache", ["ours", "stock"])
def test_what_does_not_continue_a_kept_cache_is_refused(cache, new, options, reason):
    model = sharp_model(SLIDING)
    kept = {} if cache == "ours" else cache_argument(DynamicCache(config=model.config))
    first = model.generate(tokens(41), return_dict_in_generate=True, **GREEDY, **kept)
    options = {**options, **cache_argument(cache_of(first)), **GREEDY}
    with pytest.raises(ValueError, match=reason):
        model.generate(tokens(new, seed=9), **options)


def test_another_question_behind_a_kept_prefix_is_served():
    model = sharp_model(SWAAConfig(window=8, sink_tokens=3, full_decode=True))
    asked = [torch.cat([tokens(30), tokens(9, seed=seed)], 1) for seed in (5, 6)]
    first = model.generate(asked[0], return_dict_in_generate=True, **GREEDY)
    kept = cache_of(first)
    kept.crop(30 - kept.get_seq_length())  # back to the end of the prefix
    expected = model.generate(asked[1], **GREEDY)
    assert torch.equal(model.generate(asked[1], **cache_argument(kept), **GREEDY), expected)


def test_a_turn_without_new_tokens_is_refused():
    model, first = first_turn(SLIDING)
    with pytest.raises(ValueError, match="got 46 tokens for a cache that holds 46"):
        model.generate(first.sequences[:, :-1], **cache_argument(cache_of(first)), **GREEDY)


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 2}])
def test_drafts_on_a_kept_cache_are_refused_as_long_as_transformers_reads_the_prompt_twice(options):
    stock, kept = sharp_model(), {"output_logits": True, "return_dict_in_generate": True, **GREEDY}
    first = stock.generate(tokens(41), **kept)
    asked = torch.cat([first.sequences, tokens(41)[:, :6]], 1)
    cache = copy.deepcopy(cache_of(first))
    plain = stock.generate(asked, **cache_argument(cache), **kept).logits[0]
    drafted = stock.generate(asked, **cache_argument(cache_of(first)), **kept, **options)
    # Equal once Transformers is right: serve it then.
    assert not torch.allclose(drafted.logits[0], plain, atol=1e-3)
    model, first = first_turn(FULL_DECODE)
    with pytest.raises(
        ValueError, match=r"drafts \(an assistant, prompt lookup\) read the whole prompt again"
    ):
        model.generate(asked, **cache_argument(cache_of(first)), **GREEDY, **options)


@pytest.mark.parametrize(
    "positions",
    [
        lambda mask: mask.cumsum(1) - mask,  # as the tokenizer's mask has it, made explicit
        lambda mask: (mask.cumsum(1) - 1).clamp(min=0),
        lambda mask: torch.arange(41).expand(2, -1) + 5 * (torch.arange(41) >= 20),  # a gap
    ],
)
def test_positions_do_not_pack_where_a_mask_was_passed(positions):
    model, ids = tiny_model("llama"), tokens(41).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    swaa.adapt(model, SWAAConfig(window=64, full_decode=True), quiet=True)
    with torch.no_grad(), swaa.prompt_length(25):
        actual = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
    swaa.restore(model)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
    torch.testing.assert_close(actual[mask == 1], expected[mask == 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_gap_in_the_positions_packs_where_it_does_in_transformers(use_cache):
    model = tiny_model("llama")
    positions = torch.arange(41)[None] + 5 * (torch.arange(41) >= 20)
    with torch.no_grad():
        expected = model(tokens(41), position_ids=positions, use_cache=use_cache).logits
        swaa.adapt(model, SWAAConfig(window=64), quiet=True)
        actual = model(tokens(41), position_ids=positions, use_cache=use_cache).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
