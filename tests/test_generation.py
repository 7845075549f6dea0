import pytest
import torch
from transformers import DynamicCache

import swaa
from swaa.config import SWAAConfig
from swaa.generation import build_prompt, cache_bytes, check_context, generate_answer
from swaa.models import load_model
from tests.checkpoint import CONTEXT, save_checkpoint

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
SLIDING = SWAAConfig(window=16, sink_tokens=4, dense_tail=8)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(str(save_checkpoint(tmp_path_factory.mktemp("plain"))), device="cpu")


@pytest.fixture
def adapted(loaded):
    swaa.adapt(loaded.model, SLIDING, quiet=True)
    yield loaded
    swaa.restore(loaded.model)


def _ids(tokens):
    return torch.randint(0, 256, (1, tokens))


def test_prompt_is_document_then_question(loaded):
    prompt = build_prompt(loaded.tokenizer, " A text.\n", "Why?")
    assert loaded.tokenizer.decode(prompt[0]) == "A text.\n\nWhy?\n"


def test_prompt_is_framed_by_the_chat_template(tmp_path):
    framed = load_model(str(save_checkpoint(tmp_path, chat_template=TEMPLATE)), device="cpu")
    prompt = build_prompt(framed.tokenizer, "A text.", "Why?")
    assert framed.tokenizer.decode(prompt[0]) == "<user>A text.\n\nWhy?<assistant>"


@pytest.mark.parametrize(("document", "question"), [(" \n", "Why?"), ("A text.", "")])
def test_empty_document_or_question(loaded, document, question):
    with pytest.raises(ValueError, match="is empty"):
        build_prompt(loaded.tokenizer, document, question)


def test_prompt_beyond_the_trained_context(loaded):
    check_context(loaded, CONTEXT - 10, 10)
    with pytest.raises(ValueError, match=r"the prompt has 1,015 tokens .* trained to 1,024"):
        check_context(loaded, CONTEXT - 9, 10)


def test_no_new_tokens_or_no_chunk(loaded):
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        generate_answer(loaded, _ids(8), max_new_tokens=0)
    with pytest.raises(ValueError, match="chunk is 0"):
        generate_answer(loaded, _ids(8), max_new_tokens=1, chunk=0)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [(None, "prompt of 40 tokens, 40 a pass; set --chunk, sh"), (9, "9 a pass; lower --chunk")],
)
def test_out_of_memory_says_what_to_change(loaded, monkeypatch, chunk, message):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(type(loaded.model), "forward", fail)
    with pytest.raises(ValueError, match=message):
        generate_answer(loaded, _ids(40), max_new_tokens=2, chunk=chunk)


def test_answer_and_cost_of_the_model_as_it_is(loaded):
    prompt = _ids(40)
    pieces = []
    made = generate_answer(loaded, prompt, max_new_tokens=6, on_text=pieces.append)
    ids = loaded.model.generate(prompt, max_new_tokens=6, do_sample=False)[0, 40:]
    assert made.text == loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert "".join(pieces).strip() == made.text
    assert (made.prompt_tokens, made.new_tokens) == (40, len(ids))
    assert made.first_token_s > 0
    assert made.tokens_per_s > 0
    # 4 layers of keys and values, 1 head of 16 numbers of 4 bytes; the last token is not stored.
    assert made.kv_bytes == made.peak_kv_bytes == (40 + len(ids) - 1) * 4 * 2 * 16 * 4


def test_one_token_has_no_speed(loaded):
    assert generate_answer(loaded, _ids(8), max_new_tokens=1).tokens_per_s is None


def test_adapted_model_frees_keys(adapted):
    made = generate_answer(adapted, _ids(100), max_new_tokens=2)
    assert made.kv_bytes == (16 + 4) * 4 * 2 * 16 * 4
    assert made.peak_kv_bytes > made.kv_bytes


def test_chunks_change_nothing_but_the_reports(adapted):
    prompt, hooks = _ids(100), dict(adapted.model._forward_hooks)
    whole, chunked = [], []
    first = generate_answer(adapted, prompt, max_new_tokens=8, on_prefill=whole.append)
    second = generate_answer(adapted, prompt, max_new_tokens=8, chunk=33, on_prefill=chunked.append)
    assert first.text == second.text
    assert (whole, chunked) == ([100], [33, 66, 99, 100])
    assert adapted.model._forward_hooks == hooks


def test_decoding_from_a_graph_changes_nothing(adapted):
    prompt = _ids(100)
    reports, pieces = [], []
    expected = generate_answer(adapted, prompt, max_new_tokens=30)
    made = generate_answer(
        adapted,
        prompt,
        max_new_tokens=30,
        graph=True,
        chunk=33,
        on_prefill=reports.append,
        on_text=pieces.append,
    )
    assert made.text == expected.text == "".join(pieces).strip()
    assert reports == [33, 66, 99, 100]
    assert (made.new_tokens, made.kv_bytes) == (expected.new_tokens, expected.kv_bytes)
    assert made.tokens_per_s > 0


def test_bytes_of_an_empty_cache():
    assert cache_bytes(DynamicCache()) == (0, 0)
