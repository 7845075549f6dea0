"""Every family in every generate mode against the loop-mask model."""

from dataclasses import replace

import pytest
import torch
from transformers import CompileConfig

from swaa import SWAAConfig
from swaa.integrations.transformers.cache import RollingLayer, SWAACache
from swaa.integrations.transformers.cache_name import cache_argument, cache_of
from tests.integrations.families import FAMILIES, NATIVE_WINDOW, adapted, layer_types
from tests.integrations.loop_model import build_masks, loop_logits, positions, rows_of

PROMPT, NEW, PAD = 41, 8, 7
FULL_DECODE = SWAAConfig(window=8, sink_tokens=3, full_layers=[1], full_decode=True, dense_tail=4)
MIXED = SWAAConfig(window=8, sink_tokens=3, full_layers=[1], full_decode=[2])
MIXED_TAIL = SWAAConfig(window=8, sink_tokens=3, full_decode=[3], dense_tail=5)
SLIDING = SWAAConfig(window=8, sink_tokens=3)
HEADS = SWAAConfig(
    window=8, sink_tokens=3, full_layers=[0], full_decode={"1": [1], "2": [0], "3": [0]}
)
HEADS_TAIL = replace(HEADS, dense_tail=5)
CONFIGS = {
    "full": FULL_DECODE,
    "mixed": MIXED,
    "tail": MIXED_TAIL,
    "sliding": SLIDING,
    "heads": HEADS,
    "heads and tail": HEADS_TAIL,
}
LINEAR = ["qwen3_next"]
ALL_KINDS = ("llama", "gemma3_text", "qwen3_next")
"""Families that differ in their kinds of layers, with every configuration.

The others meet every kind of row in two: "mixed" has full and sliding layers and full decode,
"heads and tail" a full layer, KV heads that differ, and a dense tail.
"""
FAMILIES_AND_CONFIGS = [
    pytest.param(family, config, id=f"{family}-{name}")
    for family in FAMILIES
    for name, config in CONFIGS.items()
    if family in ALL_KINDS or name in ("mixed", "heads and tail")
]


def prompt(batch=2, tokens=PROMPT):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 97, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    if batch > 1:
        mask[1, :PAD] = 0
        ids[1, :PAD] = 0
    return ids, mask


def generate(model, ids, mask, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )


def expected(model, config, sequences, starts, rows):
    masks = build_masks(
        config, layer_types(model), starts, sequences.shape[1], rows, native_window=NATIVE_WINDOW
    )
    return loop_logits(model, sequences, masks, positions(starts, sequences.shape[1]))


def check(model, config, output, starts, prompt_length=PROMPT):
    total = output.sequences.shape[1]
    rows = rows_of(prompt_length, config.dense_tail, total)
    logits = expected(model, config, output.sequences, starts, rows)[:, prompt_length - 1 : -1]
    actual = torch.stack(output.logits, dim=1)
    torch.testing.assert_close(actual, logits[:, : actual.shape[1]], atol=1e-5, rtol=1e-5)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.mark.parametrize(("family", "config"), FAMILIES_AND_CONFIGS)
def test_left_padded_batch(family, config):
    model = adapted(family, config)
    check(model, config, generate(model, *prompt()), [0, PAD])


@pytest.mark.parametrize(("family", "config"), FAMILIES_AND_CONFIGS)
def test_chunked_prefill_with_a_last_chunk_of_one_token(family, config):
    model = adapted(family, config)
    check(model, config, generate(model, *prompt(), prefill_chunk_size=10), [0, PAD])


@pytest.mark.parametrize(("family", "config"), FAMILIES_AND_CONFIGS)
def test_prompt_lookup_decoding(family, config):
    if family in LINEAR:
        pytest.skip("Transformers has no assisted decoding for models with linear layers")
    model = adapted(family, config)
    ids, mask = prompt(batch=1)
    ids[0, 20:40] = ids[0, :20]  # so that there is something to look up
    check(model, config, generate(model, ids, mask, prompt_lookup_num_tokens=4), [0])


@pytest.mark.parametrize("config", [MIXED_TAIL, HEADS, HEADS_TAIL])
def test_beam_search(family, config):
    model = adapted(family, config)
    ids, mask = prompt()
    output = generate(model, ids, mask, num_beams=3)
    rows = rows_of(PROMPT, config.dense_tail, PROMPT + NEW)
    logits = expected(model, config, output.sequences, [0, PAD], rows)
    logprobs = logits[:, PROMPT - 1 : -1].log_softmax(-1)
    chosen = logprobs.gather(-1, output.sequences[:, PROMPT:, None])[..., 0].sum(-1) / NEW
    torch.testing.assert_close(output.sequences_scores, chosen, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [MIXED_TAIL, HEADS_TAIL])
def test_several_sequences_per_prompt(family, config):
    model = adapted(family, config)
    output = generate(model, *prompt(), num_return_sequences=2, do_sample=True, top_k=0)
    check(model, config, output, [0, 0, PAD, PAD])


@pytest.mark.parametrize(
    "config", [FULL_DECODE, SLIDING, HEADS_TAIL], ids=["full", "sliding", "heads"]
)
def test_static_cache(family, config):
    model = adapted(family, config)
    output = generate(model, *prompt(), cache_implementation="static", disable_compile=True)
    check(model, config, output, [0, PAD])


def test_prompt_shorter_than_the_window(family):
    config = SWAAConfig(window=64, sink_tokens=3, full_decode=[2], dense_tail=4)
    model = adapted(family, config)
    ids, mask = prompt(batch=1, tokens=5)
    check(model, config, generate(model, ids, mask), [0], prompt_length=5)


@pytest.mark.parametrize(("family", "config"), FAMILIES_AND_CONFIGS)
def test_second_turn_with_the_kept_cache(family, config):
    model = adapted(family, config)
    ids, mask = prompt(batch=1)
    first = generate(model, ids, mask)
    cached = first.sequences.shape[1] - 1  # the last token's keys come with the next turn
    ids = torch.cat([first.sequences, prompt(batch=1, tokens=6)[0]], dim=1)
    second_prompt = ids.shape[1]
    recomputed = config.dense_tail > 0 and cache_of(first).has_evicted()
    output = generate(model, ids, torch.ones_like(ids), **cache_argument(cache_of(first)))
    total = output.sequences.shape[1]
    rows = rows_of(second_prompt, config.dense_tail, total)
    if not recomputed:  # rows in the cache keep the phase they were computed in
        earlier = rows_of(PROMPT, config.dense_tail, cached)
        rows.tail = {t for t in rows.tail if t >= cached} | earlier.tail
        rows.answers |= earlier.answers
    logits = expected(model, config, output.sequences, [0], rows)[:, second_prompt - 1 : -1]
    torch.testing.assert_close(torch.stack(output.logits, 1), logits, atol=1e-5, rtol=1e-5)


def test_an_assistant_model_drafts():
    model, assistant = adapted("llama", MIXED_TAIL), adapted("llama", MIXED_TAIL)
    with torch.no_grad():  # nearly the same model: some drafts are taken, some are not
        assistant.lm_head.weight += 0.02 * torch.randn_like(assistant.lm_head.weight)
    check(model, MIXED_TAIL, generate(model, *prompt(batch=1), assistant_model=assistant), [0])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_static_cache_compiled_without_graph_breaks(family):
    compiled = CompileConfig(backend="eager", fullgraph=True)
    compiled._compile_all_devices = True
    model = adapted(family, FULL_DECODE)
    output = generate(model, *prompt(), cache_implementation="static", compile_config=compiled)
    check(model, FULL_DECODE, output, [0, PAD])


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_next"])
def test_layers_that_slide_in_decoding_keep_sinks_and_window(family):
    model = adapted(family, MIXED_TAIL)
    cache = cache_of(generate(model, *prompt()))
    assert isinstance(cache, SWAACache)
    types = layer_types(model)
    for index, layer in enumerate(cache.layers):
        rolls = types[index] == "full_attention" and index != 3
        assert isinstance(layer, RollingLayer) == rolls
        if rolls:
            assert layer.keys.shape[2] == 8 + 3
            assert layer.keys.untyped_storage().nbytes() == layer.keys.nbytes
