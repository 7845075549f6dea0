"""Rows declared one by one: labels, several turns, right padding, packed sequences, gradients."""

import pytest
import torch

import swaa
from swaa import SWAAConfig
from swaa.phase import full_attention
from tests.integrations.families import NATIVE_WINDOW, adapted, layer_types, tiny_model
from tests.integrations.loop_model import Rows, build_masks, loop_logits

CONFIG = SWAAConfig(window=8, sink_tokens=3, full_layers=[1], full_decode=[0, 2], dense_tail=4)
FAMILIES = ["llama", "qwen3", "gemma3_text"]
TOKENS = 44


def tokens(batch=2):
    return torch.randint(2, 97, (batch, TOKENS), generator=torch.Generator().manual_seed(2))


def spans(*answers):
    rows = torch.zeros(len(answers), TOKENS, dtype=torch.bool)
    for b, ranges in enumerate(answers):
        for first, end in ranges:
            rows[b, first:end] = True
    return rows


def expected(model, ids, answers, documents=None, position_ids=None):
    rows = []
    for ranges in answers:
        tail = set()
        for first, _ in ranges:
            lowest = first - CONFIG.dense_tail
            if documents is not None:
                lowest = max(lowest, documents[0].index(documents[0][first]))
            tail |= set(range(max(0, lowest), first))
        inside = {t for first, end in ranges for t in range(first, end)}
        rows.append(Rows(tail - inside, inside))
    masks = build_masks(
        CONFIG, layer_types(model), [0] * len(ids), TOKENS, rows, documents, NATIVE_WINDOW
    )
    return loop_logits(model, ids, masks, position_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_answer_rows_of_several_turns(family):
    model, ids = adapted(family, CONFIG), tokens()
    answers = [[(14, 20), (30, 44)], [(2, 9), (12, 15), (40, 44)]]
    with torch.no_grad(), swaa.attention_rows(spans(*answers)):
        actual = model(ids).logits
    torch.testing.assert_close(actual, expected(model, ids, answers), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_does_not_reach_real_rows(family):
    model, ids = adapted(family, CONFIG), tokens()
    answers = [[(14, 44)], [(10, 30)]]
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    with torch.no_grad(), swaa.attention_rows(spans(*answers)):
        actual = model(ids, attention_mask=mask).logits
    wanted = expected(model, ids, answers)
    torch.testing.assert_close(actual[mask == 1], wanted[mask == 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences_stay_apart(family):
    model, ids = adapted(family, CONFIG), tokens(batch=1)
    documents = [[0] * 20 + [1] * 2 + [2] * 22]
    position_ids = torch.cat([torch.arange(n) for n in (20, 2, 22)])[None]
    answers = [[(16, 20), (23, 26), (40, 44)]]  # the second answer's tail starts its document
    with torch.no_grad(), swaa.attention_rows(spans(*answers)):
        actual = model(ids, position_ids=position_ids, use_cache=False).logits
    wanted = expected(model, ids, answers, documents, position_ids)
    torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


def test_packed_sequences_need_rows():
    model, ids = adapted("llama", CONFIG), tokens(batch=1)
    position_ids = torch.cat([torch.arange(20), torch.arange(24)])[None]
    with pytest.raises(ValueError, match="attention_rows"), swaa.prompt_length(20):
        model(ids, position_ids=position_ids, use_cache=False)


def test_prompt_lengths_may_differ_between_sequences():
    model, ids = adapted("llama", CONFIG), tokens()
    with torch.no_grad(), swaa.prompt_length(torch.tensor([20, 31])):
        actual = model(ids).logits
    wanted = expected(model, ids, [[(20, TOKENS)], [(31, TOKENS)]])
    torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_nothing():
    model, ids = adapted("llama", CONFIG), tokens()
    model.train()
    labels = torch.where(spans([(14, 44)], [(30, 44)]), ids, -100)
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        with swaa.attention_rows(labels != -100):
            loss = model(ids, labels=labels, use_cache=False).loss
        loss.backward()  # outside the block on purpose: recomputation must not need it
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_attention_is_the_model_before_it_was_adapted(family):
    model, ids = tiny_model(family), tokens()
    with torch.no_grad():
        wanted = model(ids).logits
        swaa.adapt(model, CONFIG, quiet=True)
        with full_attention():
            actual = model(ids).logits
    torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


def test_rows_of_another_shape_are_refused():
    model, ids = adapted("llama", CONFIG), tokens()
    rows = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="attention_rows got shape"), swaa.attention_rows(rows):
        model(ids)


@pytest.mark.parametrize("bad", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool), [True]])
def test_rows_must_be_a_boolean_matrix(bad):
    with pytest.raises(TypeError, match="boolean tensor"), swaa.attention_rows(bad):
        pass


@pytest.mark.parametrize(
    ("bad", "error"),
    [(-1, ValueError), (True, TypeError), (1.5, TypeError), (torch.ones(2, 2), TypeError)],
)
def test_prompt_length_must_be_a_number_of_tokens(bad, error):
    with pytest.raises(error, match="prompt_length"), swaa.prompt_length(bad):
        pass
