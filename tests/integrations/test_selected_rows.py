"""Layers with selected rows in every generate mode, against loops that choose for themselves."""

import pytest
import torch
from transformers import AttentionInterface

import swaa
from swaa import SWAAConfig
from swaa.integrations.transformers.cache_name import cache_of
from swaa.integrations.transformers.fast import graph_sample
from tests.integrations.families import tiny_model
from tests.integrations.loop_model import positions, rows_of
from tests.integrations.test_generate_modes import PAD, generate, prompt

PROMPT, NEW = 330, 6
CONFIG = SWAAConfig(
    window=64,
    sink_tokens=5,
    full_layers=[3],
    full_decode=True,
    dense_tail=7,
    selected_layers=[1, 2],
    selected_keys=64,
)
STATE = {}


def loop_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Eager attention; masks are made row by row from what this layer's queries and keys say."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    mask = torch.stack(
        [
            sequence_mask(module.layer_idx, query[b], key[b, ::groups], start, scaling)
            for b, start in enumerate(STATE["starts"])
        ]
    )
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).nan_to_num(0.0)
    return (weights @ value).transpose(1, 2).contiguous(), None


def sequence_mask(layer, query, key, start, scaling):
    """bool ``[heads, rows, keys]`` of one sequence whose text begins at slot ``start``."""
    heads, total = query.shape[:2]
    of = rows_of(STATE["prompt"], CONFIG.dense_tail, total)
    # Lists: single elements of a tensor take far longer to write.
    sliding = [[False] * total for _ in range(total)]
    for t in range(start, total):
        full = layer in CONFIG.full_layers or t in of.tail or t in of.answers
        for u in range(start, t + 1):
            sliding[t][u] = full or t - u < CONFIG.window or u - start < CONFIG.sink_tokens
    mask = torch.tensor(sliding).repeat(heads, 1, 1)
    if layer not in (1, 2):
        return mask
    groups = heads // key.shape[0]
    for top in range(start, total, 128):
        rows = [t for t in range(top, min(top + 128, total)) if t not in of.tail | of.answers]
        blocks = list(range(start, top - 63, 64))  # complete before the rows begin
        asking = [t for t in rows if t - start >= CONFIG.window]  # the others see every key
        if not blocks or not asking:
            continue
        fours = [[t for t in asking if (t - start) // 4 == n] for n in range(total)]
        for kv_head in range(key.shape[0]):
            best = {}
            for head in range(kv_head * groups, (kv_head + 1) * groups):
                bounds = []
                q = torch.stack([query[head, four].mean(0) for four in fours if four])
                for u in blocks:
                    keys = key[kv_head, u : u + 64]
                    largest = torch.maximum(q * keys.amax(0), q * keys.amin(0)).sum(-1)
                    bounds.append(largest * scaling)
                shares = torch.stack(bounds).softmax(0).amax(1).tolist()
                for u, share in zip(blocks, shares, strict=True):
                    if u + 64 - start > CONFIG.sink_tokens and u < top + 128 - CONFIG.window:
                        best[u] = max(best.get(u, 0.0), share)
            for u in sorted(best, key=best.get, reverse=True)[: CONFIG.selected_keys // 64]:
                for t in rows:
                    mask[kv_head * groups : (kv_head + 1) * groups, t, u : u + 64] = True
    return mask


AttentionInterface.register("swaa_selected_loop", loop_attention)


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        (2, {}),
        (1, {"prefill_chunk_size": 128}),  # whole blocks of rows
        (1, {"cache_implementation": "static"}),
        (1, {"prompt_lookup_num_tokens": 4}),
        (1, {"custom_generate": graph_sample, "prefill_chunk_size": 128}),
    ],
    ids=["left-padded batch", "chunks", "static cache", "prompt lookup", "fast path"],
)
def test_every_mode_gives_the_logits_of_the_loops(model, batch, options):
    swaa.adapt(model, CONFIG, quiet=True)
    output = generate(model, *prompt(batch, PROMPT), max_new_tokens=NEW, **options)
    swaa.restore(model)
    starts = [0, PAD][:batch]
    total = output.sequences.shape[1]
    STATE.update(starts=starts, prompt=PROMPT)
    model.set_attn_implementation("swaa_selected_loop")
    with torch.no_grad():
        wanted = model(
            input_ids=output.sequences, position_ids=positions(starts, total), use_cache=False
        ).logits[:, PROMPT - 1 : -1]
    actual = torch.stack(output.logits, dim=1)
    torch.testing.assert_close(actual, wanted[:, : actual.shape[1]], atol=1e-5, rtol=1e-5)


def test_keys_are_chosen(model):
    """The tests above would pass without any choice if choosing made no difference."""
    ids, mask = prompt(1, PROMPT)
    logits = {}
    for keys in (64, 128):
        config = SWAAConfig(**{**vars(CONFIG), "selected_keys": keys})
        swaa.adapt(model, config, quiet=True)
        with torch.no_grad(), swaa.prompt_length(PROMPT):
            logits[keys] = model(input_ids=ids, attention_mask=mask).logits[0, :-10]
    assert (logits[64] - logits[128]).abs().max() > 1e-3


def test_a_cache_keeps_every_key_of_a_selected_layer(model):
    config = SWAAConfig(window=64, sink_tokens=5, selected_layers=[1], selected_keys=64)
    swaa.adapt(model, config, quiet=True)
    output = generate(model, *prompt(1, PROMPT), max_new_tokens=2)
    kept = [layer.keys.shape[2] for layer in cache_of(output).layers]
    assert kept == [69, PROMPT + 1, *[69] * (len(kept) - 2)]


def test_the_summary_names_selected_layers(model):
    summary = swaa.adapt(model, CONFIG, quiet=True).summary
    assert "64 selected keys in layers 1,2" in summary
