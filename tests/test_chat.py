"""swaa chat: a conversation line by line, its cache kept where that is right."""

import io

import pytest

import swaa
from swaa import models
from swaa.chat import Conversation
from swaa.cli import chat, main
from swaa.generation import frame
from tests.checkpoint import save_checkpoint

TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
FORGETFUL = "{% for m in messages %}{{ m['content'][-9:] }}\n{% endfor %}"
RECIPES = {
    "full": None,
    "full decode": {"window": 8, "sink_tokens": 2, "full_decode": True},
    "sliding": {"window": 8, "sink_tokens": 2},
    "tail": {"window": 8, "sink_tokens": 2, "dense_tail": 4},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return str(save_checkpoint(folder, chat_template=TEMPLATE))


@pytest.fixture
def loaded(checkpoint):
    loaded = models.load_model(checkpoint, device="cpu")
    # Letters only, so that an answer's text is cut into the tokens that were generated.
    odd = [i for i in range(len(loaded.tokenizer)) if not loaded.tokenizer.decode([i]).isalpha()]
    loaded.model.generation_config.suppress_tokens = odd
    return loaded


@pytest.fixture
def talk(checkpoint, monkeypatch, capsys):
    def run(text, *words):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        code = main(["chat", checkpoint, "--device", "cpu", "--max-new-tokens", "4", *words])
        return code, *capsys.readouterr()

    return run


def answers(conversation, *messages):
    return [conversation.ask(message) for message in messages]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_kept_cache_holds_all_but_what_is_new(loaded, recipe):
    if RECIPES[recipe] is not None:
        swaa.adapt(loaded.model, RECIPES[recipe], quiet=True)
    conversation = Conversation(loaded, max_new_tokens=5)
    pieces = []
    first = conversation.ask("Who signed the treaty?", pieces.append)
    assert "".join(pieces) == first
    assert (len(first), conversation.kept_tokens) == (5, 0)
    conversation.ask("When?")
    assert conversation.kept_tokens == len("Who signed the treaty?\n") + 4
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2


def test_turns_with_a_kept_cache_answer_as_the_whole_conversation_does(loaded):
    # Nothing depends on the phase: then what is cached is what would be computed.
    swaa.adapt(loaded.model, RECIPES["sliding"], quiet=True)
    conversation = Conversation(loaded, max_new_tokens=5)
    answers(conversation, "Who signed the treaty?", "When?", "And where was that?")
    assert conversation.kept_tokens > 0
    whole = frame(loaded.tokenizer, conversation.messages[:-1])
    output = loaded.model.generate(whole, max_new_tokens=5, do_sample=False)
    told = loaded.tokenizer.decode(output[0, whole.shape[1] :])
    assert conversation.messages[-1]["content"] == told


def test_a_template_that_rewrites_earlier_turns_is_computed_again(loaded):
    loaded.tokenizer.chat_template = FORGETFUL
    conversation = Conversation(loaded, max_new_tokens=12)
    answers(conversation, "Who signed the treaty?", "When?")
    assert conversation.kept_tokens == 0


def test_a_reset_conversation_begins_anew(loaded):
    conversation = Conversation(loaded, max_new_tokens=5)
    first, second = answers(conversation, "Who signed?", "Who signed?")
    conversation.reset()
    assert answers(conversation, "Who signed?", "Who signed?") == [first, second]
    assert len(conversation.messages) == 4


def test_a_turn_that_fails_is_forgotten(loaded):
    conversation, other = (Conversation(loaded, max_new_tokens=5) for _ in range(2))
    conversation.ask("Who signed?")
    with pytest.raises(ValueError, match=r"tiny was trained to 1,024: start over \(/reset\)"):
        conversation.ask("When? " * 200)

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask("Where?", interrupted)
    assert conversation.ask("When?") == answers(other, "Who signed?", "When?")[-1]
    assert conversation.messages == other.messages
    assert (conversation.kept_tokens, other.kept_tokens > 0) == (0, True)


def test_a_model_without_a_template_goes_on_line_by_line(loaded):
    loaded.tokenizer.chat_template = None
    ids = frame(loaded.tokenizer, [{"role": "user", "content": "a"}] * 2)
    assert loaded.tokenizer.decode(ids[0]) == "a\na\n"


def test_the_command_answers_each_line_of_a_pipe(talk):
    code, out, err = talk("Who signed?\n\n/reset\nWho signed?\n", "--window", "64")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("adapted 4 of 4 layers: window 64, 128 sinks, full decode")
    first, second = [part for part in out[len(lines[0]) + 1 :].split("\n\n") if part]
    assert first == second
    assert "> " not in lines[0]
    assert "swaa chat" not in err


def test_exit_ends_and_other_commands_are_refused(talk):
    code, out, err = talk("/rest\n/exit\nWho signed?\n", "--recipe", "full")
    assert code == 0
    assert out == "full attention, the model as it is\n"
    assert err.splitlines()[-1] == "swaa chat: /rest? There are /reset and /exit"


def test_a_message_that_does_not_fit_ends_its_turn_only(talk):
    code, out, err = talk("When? " * 200 + "\nWho signed?\n", "--recipe", "full")
    assert code == 0
    assert "swaa chat: the prompt has 1,200 tokens and the answer up to 4; tiny was" in err
    assert len(out.splitlines()) > 1


def test_control_c_stops_the_answer_only(talk, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "_print_piece", interrupted)
    code, out, err = talk("Who signed?\n", "--recipe", "full")
    assert (code, out) == (0, "full attention, the model as it is\n")
    assert err.splitlines()[-1] == "swaa chat: stopped; the turn is forgotten"


def test_a_terminal_is_asked(checkpoint, monkeypatch, prints):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    asked = []

    def typed(prompt):
        asked.append(prompt)
        raise EOFError

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", typed)
    assert "/reset starts over, /exit or Ctrl-D quits" in prints(
        "chat", checkpoint, "--device", "cpu", "--recipe", "full"
    )
    assert asked == ["> "]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--max-new-tokens", "0"], "--max-new-tokens 0: expected at least 1 tokens"),
        (["--recipe", "fats"], "unknown recipe 'fats'; did you mean 'fast'"),
        (["--recipe", "full", "--backend", "sdpa"], "--backend would do nothing: every layer is"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line(talk, words, reason):
    code, out, err = talk("", *words)
    assert (code, out) == (2, "")
    assert f"swaa chat: {reason}" in err
