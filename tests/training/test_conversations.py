import json

import pytest
from transformers import AutoTokenizer

from swaa.training.conversations import IGNORED, load_conversations
from tests.checkpoint import save_checkpoint
from tests.training.conftest import CHAT, conversation, write_lines


@pytest.fixture(scope="session")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


def _load(tmp_path, tokenizer, *lines, max_length=500, **options):
    path = write_lines(tmp_path / "d.jsonl", lines)
    return load_conversations(path, tokenizer, max_length=max_length, **options)


def _trained(tokenizer, example):
    """The words that are trained on, one text a span."""
    spans, open_ = [], False
    for token, label in zip(example.input_ids, example.labels, strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED and not open_:
            spans.append([])
        open_ = label != IGNORED
        if open_:
            spans[-1].append(token)
    return [tokenizer.decode(span) for span in spans]


PAIRS = (("how?", "so."), ("and?", "thus."))


def test_every_assistant_turn_and_its_end_token_are_answer(tmp_path, tokenizer):
    (example,) = _load(tmp_path, tokenizer, conversation("how?", "so.", "and?", "thus.")).examples
    assert _trained(tokenizer, example) == ["so.<end>", "thus.<end>"]
    text = tokenizer.decode(example.input_ids)
    first, second = (f"<|user|>{q}<end>\n<|assistant|>{a}<end>\n" for q, a in PAIRS)
    assert text == first + second
    assert example.answer_tokens == len("so.") + 1 + len("thus.") + 1


def test_the_prompt_is_what_generation_reads(tmp_path, tokenizer):
    (example,) = _load(tmp_path, tokenizer, conversation("how?", "so.")).examples
    framed = tokenizer.apply_chat_template(
        [{"role": "user", "content": "how?"}], add_generation_prompt=True, return_dict=False
    )
    assert list(example.input_ids[: len(framed)]) == framed
    assert set(example.labels[: len(framed)]) == {IGNORED}
    assert example.labels[len(framed)] != IGNORED


def test_a_question_about_the_answer_is_not_trained_on(tmp_path, tokenizer):
    lines = {"messages": [*conversation("a", "b")["messages"], {"role": "user", "content": "c"}]}
    (example,) = _load(tmp_path, tokenizer, lines).examples
    assert _trained(tokenizer, example) == ["b<end>"]


OPENING = CHAT.replace("m.content", "m.content.split('</think>')[-1]").replace(
    "<|assistant|>{%", "<|assistant|><think>\n{%"
)
"""As R1 distillations have it: thoughts are opened for the model, and dropped once said."""


@pytest.fixture
def opening(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint, chat_template=OPENING)


@pytest.mark.parametrize(
    "said",
    ["<think>\nadd\n</think>\n\nIt is 4.", "<think>add</think>It is 4.", "add</think> It is 4."],
)
def test_thoughts_that_the_template_opens_are_trained_on(tmp_path, opening, said):
    (example,) = _load(tmp_path, opening, conversation("2+2?", said)).examples
    said = said.removeprefix("<think>\n").removeprefix("<think>")
    assert _trained(opening, example) == [f"{said}<end>"]
    prompt = "<|user|>2+2?<end>\n<|assistant|><think>\n"
    assert opening.decode(example.input_ids) == f"{prompt}{said}<end>\n"


def test_thoughts_that_a_template_drops_are_trained_on_in_the_last_turn(tmp_path, checkpoint):
    dropping = AutoTokenizer.from_pretrained(
        checkpoint, chat_template=OPENING.replace("<think>\n", "")
    )
    said = "<think>add</think>It is 4."
    line = conversation("hello", "hi", "2+2?", said)
    (example,) = _load(tmp_path, dropping, line).examples
    assert _trained(dropping, example) == ["hi<end>", f"{said}<end>"]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (["2+2?", "It is 4."], "opens <think> for the model, and turn 2 has no </think>; put"),
        (["2+2?", "add</think>"], "does not show what turn 2 answers"),
        (["hi", "a</think>b", "c", "d</think>e"], "turn 2 differently.*split the conversation"),
    ],
)
def test_what_a_thinking_template_cannot_be_trained_on(tmp_path, opening, turns, message):
    with pytest.raises(ValueError, match=message):
        _load(tmp_path, opening, conversation(*turns))


def test_without_a_chat_template(tmp_path):
    plain = AutoTokenizer.from_pretrained(save_checkpoint(tmp_path / "plain"))
    (example,) = _load(tmp_path, plain, conversation("how?", "so.")).examples
    assert plain.decode(example.input_ids) == "how?\nso.<end>"
    assert _trained(plain, example) == ["so.<end>"]
    with pytest.raises(
        ValueError, match="line 1: the tokenizer has no chat template, so that only"
    ):
        _load(tmp_path, plain, conversation("a", "b", "c", "d"))


BAD = {
    "not JSON": ("{", r"line 2: not JSON \(Expecting property name"),
    "no object": ("[1]", "line 2: expected an object with 'messages'"),
    "no messages": ('{"text": "a"}', "line 2: expected an object with 'messages'"),
    "no turns": ('{"messages": []}', "line 2: expected an object with 'messages'"),
    "odd turn": ('{"messages": ["hi"]}', "line 2: turn 1 is not an object"),
    "no content": ('{"messages": [{"role": "user"}]}', "line 2: turn 1 needs 'role' and 'content'"),
    "no assistant": (
        json.dumps({"messages": conversation("a", "b")["messages"][:1]}),
        "line 2: no",
    ),
    "empty answer": (json.dumps(conversation("a", " \n")), "line 2: turn 2 is an empty answer"),
    "too long": (json.dumps(conversation("a" * 900, "b")), "line 2: 9.. tokens, at most 500 are"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_named(tmp_path, tokenizer, name):
    line, message = BAD[name]
    path = tmp_path / "d.jsonl"
    good = json.dumps(conversation("a", "b"))
    path.write_text(f"{good}\n{line}\n\n{good}\n")
    with pytest.raises(ValueError, match=rf"d.jsonl: 1 of 3 lines .*{message}.*--skip-bad"):
        load_conversations(path, tokenizer, max_length=500)
    data = load_conversations(path, tokenizer, max_length=500, skip_bad=True)
    assert [example.line for example in data.examples] == [1, 4]
    assert len(data.skipped) == 1
    assert data.skipped[0].startswith("line 2: ")


def test_many_bad_lines_are_counted(tmp_path, tokenizer):
    path = tmp_path / "d.jsonl"
    path.write_text("{\n" * 9)
    with pytest.raises(ValueError, match=r"9 of 9 lines .*line 5: .*; and 4 more\."):
        load_conversations(path, tokenizer, max_length=500)
    with pytest.raises(ValueError, match=r"d.jsonl holds no conversation to train on"):
        load_conversations(path, tokenizer, max_length=500, skip_bad=True)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none.jsonl"):
        load_conversations(tmp_path / "none.jsonl", tokenizer, max_length=500)


def test_templates_that_refuse_or_rewrite_are_named(tmp_path, tokenizer):
    import copy

    picky = copy.deepcopy(tokenizer)
    picky.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="line 1: the chat template refuses it: roles must"):
        _load(tmp_path, picky, conversation("a", "b"))
    forgetful = copy.deepcopy(tokenizer)
    forgetful.chat_template = (
        "{% for m in messages %}{{ m.content if loop.last else '-' }}|{% endfor %}"
    )
    with pytest.raises(ValueError, match="renders turn 2 differently in the whole conversation"):
        _load(tmp_path, forgetful, conversation("a", "b", "c", "d"))


def test_a_tokenizer_without_offsets_is_refused(tmp_path, tokenizer):
    class Slow:
        is_fast = False

    path = write_lines(tmp_path / "d.jsonl", [conversation("a", "b")])
    with pytest.raises(ValueError, match="Slow does not say which letters"):
        load_conversations(path, Slow(), max_length=9)


def test_an_answer_joined_with_the_words_before_is_refused(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    words.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(ValueError, match="joins the beginning of an answer with the words before"):
        _load(tmp_path, words, conversation("a", "b"))
