"""Thoughts are told from answers, whether their marks are words or special tokens."""

import pytest
from tokenizers import AddedToken

from swaa.config import SWAAConfig
from swaa.evaluation.engines import Request
from swaa.evaluation.engines.transformers import TransformersEngine
from swaa.evaluation.prompt import Prompt
from swaa.models import LoadedModel
from swaa.thoughts import opened, spoken
from tests.evaluation.conftest import CHAT, byte_tokenizer

MARKS = [AddedToken("<think>", special=True), AddedToken("</think>", special=True)]
OPENING = CHAT.replace("<|assistant|>", "<|assistant|><think>\n")


def marked_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(MARKS, special_tokens=True)
    return tokenizer


def test_decoding_keeps_the_marks_and_no_other_special_token():
    tokenizer = marked_tokenizer()
    ids = tokenizer("<think>hm</think>It is 5.<end><pad>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hmIt is 5."
    assert spoken(tokenizer, ids) == "<think>hm</think>It is 5."
    plain = byte_tokenizer()
    assert spoken(plain, plain("<think>a</think>b<end>").input_ids) == "<think>a</think>b"


@pytest.mark.parametrize(
    "tokenizer", [byte_tokenizer(), marked_tokenizer()], ids=["words", "special"]
)
def test_the_engine_gives_an_answer_behind_thoughts(loaded, tokenizer):
    said = tokenizer("<think>hm</think>It is 5.<end>").input_ids
    engine = TransformersEngine(
        LoadedModel(model=loaded.model, tokenizer=tokenizer, name="x"), SWAAConfig(window=8)
    )
    request = Request(id="a", ids=(1,), content="", max_new_tokens=99)
    reply = engine._reply(request, said, 0.0)
    assert not reply.truncated
    assert Prompt(tokenizer=tokenizer, thinking=True).final_answer(reply.output) == "It is 5."


def test_a_template_that_opens_thoughts_makes_a_model_that_thinks(tokenizers):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = OPENING
    opening, usual = Prompt(tokenizer=tokenizer), Prompt(tokenizer=tokenizers["chat"])
    assert opening.text("c", "q?", "It is").endswith("<|assistant|><think>\n")
    assert usual.text("c", "q?", "It is").endswith("<|assistant|>It is")
    assert opening.describe()["thinking"]
    assert not usual.describe()["thinking"]
    assert opening.final_answer("never left") is None
    assert opening.final_answer("hm</think>\n5") == "5"
    assert Prompt(tokenizer=tokenizer, chat=False).begun("It is") == "It is"


@pytest.mark.parametrize(
    ("prompt", "open_end"),
    [
        ("<|assistant|><think>\n", "<think>\n"),
        ("<|assistant|><think>\n\n</think>\n\n", ""),
        ("use <think> tags<|assistant|>", ""),
        ("", ""),
    ],
)
def test_what_is_opened_is_at_the_end(prompt, open_end):
    assert opened(prompt) == open_end
