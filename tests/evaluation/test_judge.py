import pytest

from swaa.evaluation.judge import Judge, apply_verdicts, parse_verdict
from swaa.evaluation.sample import Sample
from swaa.http.endpoint import Endpoint, EndpointError
from tests.evaluation.server import serve


@pytest.fixture
def server():
    with serve("It says so.\nCORRECT") as running:
        yield running


@pytest.fixture
def judge(server):
    endpoint = Endpoint(url=server.url, model="j", backoff_s=0.01, retries=2, timeout_s=60.0)
    return Judge(endpoint=endpoint, concurrency=2)


def _samples(count):
    return {
        f"s{index}": Sample(
            id=f"s{index}", task="t", length=5, context="", question="", answer_prefix="",
            answers=("May 7th",), max_new_tokens=5, tags={"asked": f"when {index}?"},
        )
        for index in range(count)
    }  # fmt: skip


def _records(samples):
    return [{"id": name, "score": None, "extracted": f"on {name}"} for name in samples]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Same day.\nCORRECT", True),
        ("Same day.\n**CORRECT**.", True),
        ("Another.\nWRONG", False),
        ("It is not WRONG.\nCORRECT", True),
        ("<think>WRONG</think>CORRECT", True),
        ("CORRECT or WRONG, who knows", None),
        ("INCORRECT", None),
        ("correct", None),
        ("", None),
    ],
)
def test_only_a_last_word_is_a_verdict(reply, verdict):
    assert parse_verdict(reply) is verdict


def test_verdicts_become_scores_and_unreadable_ones_are_not_right(server, judge, tmp_path):
    server.default = lambda body: {
        "0": "Yes.\nCORRECT", "1": "No.\nWRONG", "2": "Maybe."
    }[body["messages"][0]["content"].partition("when ")[2][0]]  # fmt: skip
    samples = _samples(3)
    records = [*_records(samples), {"id": "none", "score": 0.0, "extracted": ""}]
    judged = apply_verdicts(judge, records, samples, tmp_path / "verdicts.jsonl")
    assert [record["score"] for record in judged] == [1.0, 0.0, None, 0.0]
    assert judged[2]["verdict"] == "Maybe."
    asked = server.requests[0]["messages"][0]["content"]
    assert "Reference answer: May 7th" in asked
    assert all(body["temperature"] == 0 for body in server.requests)


@pytest.mark.parametrize("fault", ["429", "500", "truncated", "malformed"])
def test_faults_of_the_judge_are_tried_again(server, judge, tmp_path, fault):
    server.script = [fault]
    samples = _samples(2)
    judged = apply_verdicts(judge, _records(samples), samples, tmp_path / "verdicts.jsonl")
    assert [record["score"] for record in judged] == [1.0, 1.0]
    assert len(server.requests) == 3


def test_verdicts_are_kept_when_the_judge_dies(server, judge, tmp_path):
    samples = _samples(6)
    server.default = "400"
    server.script = ["CORRECT", "CORRECT"]
    cache = tmp_path / "verdicts.jsonl"
    with pytest.raises(EndpointError, match="HTTP 400"):
        apply_verdicts(judge, _records(samples), samples, cache)
    kept = len(cache.read_text().splitlines())
    server.requests.clear()
    server.default = "CORRECT"
    judged = apply_verdicts(judge, _records(samples), samples, cache)
    assert all(record["score"] == 1.0 for record in judged)
    assert len(server.requests) == 6 - kept
    server.requests.clear()
    assert apply_verdicts(judge, _records(samples), samples, cache) == judged
    assert not server.requests


def test_equal_questions_with_equal_answers_are_judged_once(server, judge, tmp_path):
    samples = _samples(2)
    samples["s1"] = samples["s0"]
    records = [{"id": name, "score": None, "extracted": "on Monday"} for name in samples]
    judged = apply_verdicts(judge, records, samples, tmp_path / "verdicts.jsonl")
    assert [record["score"] for record in judged] == [1.0, 1.0]
    assert len(server.requests) == 1
