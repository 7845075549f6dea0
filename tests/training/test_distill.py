"""What is drawn, kept, dropped and resumed."""

import dataclasses
import json

import pytest

from swaa.evaluation.engines import Reply, Sampling
from swaa.evaluation.engines.openai import OpenAIEngine
from swaa.evaluation.judge import Judge
from swaa.evaluation.prompt import Prompt
from swaa.evaluation.tasks.jsonl import OwnQuestions
from swaa.evaluation.tasks.rows import DataFile
from swaa.http.endpoint import Endpoint
from swaa.training.conversations import load_conversations
from swaa.training.distill import DistillSettings, distill
from tests.evaluation.server import serve

DRAWS = {"model": "m", "temperature": 1.0, "seed": 0}


class Script:
    """An engine that says what is written for each answer."""

    def __init__(self, answers, *, fail_after=None):
        self.answers = answers
        self.asked = []
        self.fail_after = fail_after

    def describe(self):
        return {"engine": "script"}

    def answer(self, batches):
        for batch in batches:
            for request in batch:
                if self.fail_after is not None and len(self.asked) >= self.fail_after:
                    raise OSError("the server left")
                self.asked.append(request.id)
                question, _, number = request.id.rpartition("#")
                text = self.answers[int(question.rpartition(":")[2]) - 1][int(number)]
                yield Reply(
                    id=request.id,
                    output=text,
                    first_token_s=None,
                    new_tokens=len(text.split()),
                    truncated=text.endswith("..."),
                )


QUESTIONS = [
    {"context": "It was 12 then.", "question": "When?", "answers": "12"},
    {"context": "It was 30 then.", "question": "When?", "answers": ["30", "then"]},
    {"context": "It was 12 then.", "question": "When?", "answers": "12"},  # the first again
]
WELL = "Well, it was 30 then, then."
ANSWERS = [
    ["I say it was 12 then.", "At 12.", "at  12.", "At 13."],
    ["30", "Then 30...", "no", WELL],
    ["At 12.", "no", "no", "It was 12."],
]


@pytest.fixture
def ask(tmp_path, checkpoint):
    """Distils the questions; gives the summary and the conversations."""
    from transformers import AutoTokenizer

    prompt = Prompt(tokenizer=AutoTokenizer.from_pretrained(checkpoint), prefix=False)
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    task = OwnQuestions(DataFile(file))

    def run(engine=None, *, draws=DRAWS, judge=None, questions=None, **settings):
        samples = task.samples(prompt, length=None, count=None, seed=0)
        samples = [dataclasses.replace(s, tags={**s.tags, "asked": s.question}) for s in samples]
        done = distill(
            samples if questions is None else questions(samples),
            task,
            prompt,
            engine or Script(ANSWERS),
            tmp_path / "sft.jsonl",
            DistillSettings(**settings),
            draws=draws,
            judge=judge,
        )
        lines = done.path.read_text("utf-8").splitlines()
        return done, [json.loads(line)["messages"] for line in lines]

    return run


def _said(conversations):
    return [turns[1]["content"] for turns in conversations]


def test_the_shortest_right_answers_are_kept_once(ask):
    done, conversations = ask(keep=2)
    first, second, third = ["At 12.", "I say it was 12 then."], [WELL], ["It was 12."]
    assert _said(conversations) == first + second + third
    assert conversations[0][0] == {"role": "user", "content": "It was 12 then.\n\nWhen?"}
    counts = (done.questions, done.answers, done.right, done.kept, done.unanswered)
    assert counts == (3, 12, 6, 4, 0)
    _, one = ask(keep=1)
    assert _said(one) == ["At 12.", WELL, "It was 12."]


def test_training_reads_what_was_written(ask, checkpoint):
    from transformers import AutoTokenizer

    done, conversations = ask()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    data = load_conversations(done.path, tokenizer, max_length=500)
    assert len(data.examples) == len(conversations) == 3


def test_an_interrupted_run_draws_only_what_is_missing(ask):
    broken = Script(ANSWERS, fail_after=5)
    with pytest.raises(OSError, match="the server left"):
        ask(broken)
    again = Script(ANSWERS)
    done, conversations = ask(again)
    assert len(again.asked) == 12 - 5
    assert done.answers == 12
    idle = Script(ANSWERS)
    assert _said(ask(idle)[1]) == _said(conversations)
    assert idle.asked == []


def test_answers_drawn_in_another_way_are_not_mixed_in(ask):
    ask()
    with pytest.raises(ValueError, match="was drawn with another model, temperature, seed or prom"):
        ask(draws={**DRAWS, "seed": 1})

    def changed(samples):
        return [dataclasses.replace(samples[0], question="Why?"), *samples[1:]]

    with pytest.raises(ValueError, match=r"the question of answer q.jsonl:1#0 has changed"):
        ask(questions=changed)


def test_a_full_disk_leaves_the_file_before(ask, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "no room")

    path = ask()[0].path
    before = path.read_text()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*sft.jsonl: no room; make room"):
        ask(keep=2)
    assert path.read_text() == before


def test_a_file_that_no_distillation_wrote_is_kept(ask, tmp_path):
    (tmp_path / "sft.jsonl").write_text("mine")
    idle = Script(ANSWERS)
    with pytest.raises(ValueError, match=r"sft.jsonl exists and was not written by"):
        ask(idle)
    assert (tmp_path / "sft.jsonl").read_text() == "mine"
    assert idle.asked == []


def test_a_judge_may_filter(ask, tmp_path):
    def verdict(body):
        return "CORRECT" if "decide about: no" in body["messages"][0]["content"] else "hm"

    with serve(verdict) as server:
        judge = Judge(endpoint=Endpoint(url=server.url, model="j", retries=0))
        done, conversations = ask(judge=judge)
        assert _said(conversations) == ["no", "no"]
        assert done.unjudged > 0
        asked = len(server.requests)
        ask(judge=judge)
        assert len(server.requests) == asked, "a verdict was asked for twice"
    assert (tmp_path / "sft.judge.jsonl").exists()


def test_an_endpoint_may_answer(ask):
    with serve("It was 12 or 30 then.") as server:
        engine = OpenAIEngine(
            Endpoint(url=server.url, model="m", retries=0), sampling=Sampling(temperature=0.9)
        )
        done, conversations = ask(engine, answers=2)
        assert {body["temperature"] for body in server.requests} == {0.9}
    assert (done.answers, done.right) == (6, 6)
    assert len(conversations) == 2  # the third question is the first again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": 0}, "answers is 0; expected at least 1"),
        ({"keep": 5}, "keep is 5, of only 4 answers a question"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected at least 1"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        DistillSettings(**change)
