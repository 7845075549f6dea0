import pytest

from swaa.evaluation.prompt import STEP_BY_STEP, Prompt
from swaa.evaluation.sample import Sample

SAMPLE = Sample(
    id="a", task="t", length=1, context=" Text. ", question="Why?", answer_prefix=" Because",
    answers=(), max_new_tokens=30,
)  # fmt: skip


def _text(prompt):
    return prompt.text(SAMPLE.context, SAMPLE.question, SAMPLE.answer_prefix)


def test_chat_template_frames_and_the_answer_is_begun(tokenizers):
    text = _text(Prompt(tokenizer=tokenizers["chat"]))
    assert text == "<|system|>be brief\n<|user|>Text.\n\nWhy?\n<|assistant|>Because"


def test_without_a_template(tokenizers):
    assert _text(Prompt(tokenizer=tokenizers["bytes"])) == "Text.\n\nWhy?\nBecause"
    assert _text(Prompt(tokenizer=tokenizers["chat"], chat=False)) == "Text.\n\nWhy?\nBecause"
    with pytest.raises(ValueError, match="no chat template"):
        _text(Prompt(tokenizer=tokenizers["bytes"], chat=True))


def test_a_template_that_swallows_the_question_is_refused(tokenizers):
    tokenizer = tokenizers["bytes"].__class__(
        tokenizer_object=tokenizers["bytes"].backend_tokenizer
    )
    tokenizer.chat_template = "hello"
    with pytest.raises(ValueError, match="does not show the user's words"):
        _text(Prompt(tokenizer=tokenizer))


def test_thinking_and_step_by_step_begin_no_answer(tokenizers):
    thinking = Prompt(tokenizer=tokenizers["chat"], thinking=True)
    assert _text(thinking).endswith("<|assistant|>")
    assert thinking.max_new_tokens(SAMPLE) == 10_000
    cot = Prompt(tokenizer=tokenizers["chat"], cot=True)
    assert STEP_BY_STEP in _text(cot)
    assert cot.max_new_tokens(SAMPLE) == 2_000
    assert Prompt(tokenizer=tokenizers["chat"]).max_new_tokens(SAMPLE) == 30
    assert _text(Prompt(tokenizer=tokenizers["chat"], prefix=False)).endswith("<|assistant|>")


def test_the_answer_is_what_follows_the_thoughts(tokenizers):
    thinking = Prompt(tokenizer=tokenizers["words"], thinking=True)
    plain = Prompt(tokenizer=tokenizers["words"])
    assert thinking.final_answer("<think>a</think> b</think> c ") == "c"
    assert thinking.final_answer("still thinking") is None
    assert plain.final_answer("a</think>b") == "b"
    assert plain.final_answer(" a ") == "a"
    assert plain.final_answer("word " * 4_000) is not None
    assert plain.final_answer("word " * 4_001) is None
