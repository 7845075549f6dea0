import importlib.util
import json
import subprocess
import sys

import pytest

from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample
from swaa.evaluation.tasks import find_tasks, ruler
from swaa.evaluation.tasks.ruler import NAMES, Ruler
from swaa.evaluation.tasks.ruler_script import MARKS, split_sentences

missing = [name for name in ruler._PACKAGES if importlib.util.find_spec(name) is None]
needs_wheel = pytest.mark.skipif(bool(missing), reason=f"RULER's wheel: no {', '.join(missing)}")


def _sample(**changes):
    values = {
        "id": "a", "task": "ruler", "length": 1, "context": "", "question": "",
        "answer_prefix": "", "answers": ("Alpha", "beta"), "max_new_tokens": 1,
    }  # fmt: skip
    return Sample(**(values | changes))


@pytest.mark.parametrize("name", NAMES)
def test_gold_scores_1_and_nothing_0(name):
    task = Ruler(name)
    assert task.score(_sample(), "alpha, BETA").value == 1
    assert task.score(_sample(), "only alpha").value == (1 if name.startswith("qa") else 0.5)
    for nothing in ("", None):
        assert task.score(_sample(), nothing) == (0.0, False, None)


def test_prompts_are_taken_apart(prompt):
    text = (
        f"Example {MARKS[0]} old {MARKS[1]} done.\nText with 77.{MARKS[0]}\nWhat? {MARKS[1]} It is"
    )
    values = {"input": text, "outputs": ["77"]}
    sample = Ruler("niah_single_1")._sample(prompt, "r", values, 128)
    assert sample.context == "Example  old  done.\nText with 77."
    assert (sample.question, sample.answer_prefix) == ("What?", "It is")
    assert sample.length == prompt.count(sample.context, "What?", "It is")
    assert sample.needles[0].tokens == len(" 77")


def test_sentences():
    text = 'One. "Two!" she said. 3.5 is no end.\nThree? Four'
    assert split_sentences(text) == [
        "One.", '"Two!"', "she said.", "3.5 is no end.", "Three?", "Four",
    ]  # fmt: skip


def test_missing_packages_are_answered_with_the_remedy(monkeypatch):
    monkeypatch.setattr(ruler, "_PACKAGES", ("no_such_package",))
    with pytest.raises(
        ImportError, match=r"need no_such_package; run: .* && pip install '.\[ruler\]'"
    ):
        find_tasks(["ruler:vt"])
    with pytest.raises(ValueError, match="ruler:vtt: RULER has no such task; give one of niah_"):
        find_tasks(["ruler:vtt"])


def test_a_generator_that_fails_is_named(prompt, monkeypatch):
    monkeypatch.setattr(ruler.subprocess, "run", lambda *args, **options: _Done())
    with pytest.raises(ValueError, match="generator of vt failed at 4096 tokens: KeyError: 1"):
        ruler._generate("vt", prompt, 4096, 1, 0)


def test_a_generator_without_end_is_stopped(prompt, monkeypatch):
    def hang(command, timeout, **options):
        raise ruler.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(ruler.subprocess, "run", hang)
    with pytest.raises(ValueError, match="of vt came to no end at 64 tokens; ask for longer"):
        ruler._generate("vt", prompt, 64, 1, 0)


def test_a_generator_that_only_makes_longer_prompts_is_ended(tokenizers, tmp_path):
    tokenizers["words"].save_pretrained(tmp_path)
    script = """
from swaa.evaluation.tasks.ruler_script import _Tokenizer
tokenizer = _Tokenizer(sys.argv[1], 2, 4)
for text in ("a", "a b c", "a"):
    for _ in range(2000):
        tokenizer.text_to_tokens(text)
while True:
    try:
        tokenizer.text_to_tokens("a b c")
    except:
        pass
"""
    command = [sys.executable, "-c", f"import sys{script}", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.endswith("its prompts have 5 tokens and more; ask for longer ones\n")


class _Done:
    returncode = 1
    stderr = "Traceback\nKeyError: 1"


@needs_wheel
def test_generated_prompts_fit_and_hold_their_answers(tokenizers):
    prompt = Prompt(tokenizer=tokenizers["words"])
    (task,) = find_tasks(["ruler:vt"])
    samples = task.samples(prompt, length=4096, count=2, seed=0)
    for sample in samples:
        assert sample.length + sample.max_new_tokens <= 4096
        assert all(answer in sample.context for answer in sample.answers)
        assert task.score(sample, json.dumps(sample.answers)).value == 1
    assert samples == task.samples(prompt, length=4096, count=2, seed=0)
    assert samples != task.samples(prompt, length=4096, count=2, seed=1)
