import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import AddedToken

from swaa.evaluation.engines import Request, Sampling, make_batches, openai
from swaa.evaluation.engines.openai import OpenAIEngine
from swaa.http.endpoint import Endpoint, EndpointError
from tests.evaluation.conftest import byte_tokenizer
from tests.evaluation.server import serve

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def server():
    with serve("It is 42.") as running:
        yield running


def _endpoint(server, **changes):
    values = {"model": "m", "backoff_s": 0.01, "retries": 3, "timeout_s": 60.0}
    return Endpoint(url=server.url, **(values | changes))


def test_an_answer_is_put_together_from_its_pieces(server):
    said = _endpoint(server, key="secret").chat(MESSAGES, max_tokens=9)
    assert (said.text, said.new_tokens, said.finish_reason) == ("It is 42.", 7, "stop")
    assert said.first_token_s > 0
    (body,) = server.requests
    assert body["path"] == "/v1/chat/completions"
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 9, "m")
    assert body["key"] == "Bearer secret"


def test_keys_are_not_shown(server):
    assert "secret" not in repr(_endpoint(server, key="secret"))


def test_a_server_that_does_not_stream(server):
    server.script = ["unstreamed"]
    said = _endpoint(server).chat(MESSAGES)
    assert (said.text, said.new_tokens, said.finish_reason) == ("all at once", 3, "length")


def test_thoughts_that_a_server_parts_off_are_kept(server):
    server.script = ["thoughts"]
    assert _endpoint(server).chat(MESSAGES).text == "<think>hm</think>yes"


@pytest.mark.parametrize("fault", ["429", "500", "truncated", "malformed", "empty", "error"])
def test_passing_faults_are_tried_again(server, fault):
    server.script = [fault, fault]
    assert _endpoint(server).chat(MESSAGES).text == "It is 42."
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "HTTP 500: oops"),
        ("429", "HTTP 429: slow down"),
        ("truncated", "the answer broke off"),
        ("malformed", "the answer is not JSON: {not json"),
        ("empty", "the answer has no choices"),
        ("error", "the server says: .*overload"),
    ],
)
def test_faults_that_stay_are_named(server, fault, reason):
    server.script = [fault] * 4
    with pytest.raises(EndpointError, match=f"failed 4 times, last: {reason}.*; check that the"):
        _endpoint(server).chat(MESSAGES)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"choices": [5]}, r"'choices\[0\]' is 5"),
        ({"choices": [[]]}, r"'choices\[0\]' is \[\]"),
        ({"choices": [{"delta": "x"}]}, "'delta' is 'x'"),
        ({"choices": [{"message": [1]}]}, r"'message' is \[1\]"),
        ({"choices": [{"delta": {"content": 5}}]}, "'content' is 5"),
        ({"choices": [{"delta": {"content": ["a"]}}]}, r"'content' is \['a'\]"),
        ({"choices": [{"delta": {"reasoning": True}}]}, "'reasoning' is True"),
        ({"choices": [{"text": 1.5}]}, r"'text' is 1\.5"),
        ({"choices": [{"text": "a", "finish_reason": 1}]}, "'finish_reason' is 1"),
        ({"choices": [{"text": "a"}], "usage": []}, r"'usage' is \[\]"),
        ({"choices": [], "usage": {"completion_tokens": "7"}}, "'completion_tokens' is '7'"),
        ({"choices": [], "usage": {"completion_tokens": True}}, "'completion_tokens' is True"),
    ],
    ids=str,
)
def test_a_body_of_another_protocol_is_named_and_not_tried_again(server, body, reason):
    server.script = [json.dumps(body).encode()]
    with pytest.raises(EndpointError, match=f"does not speak OpenAI's protocol: {reason}; check"):
        _endpoint(server).chat(MESSAGES)
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"usage": ' + b"9" * 5000 + b"}"])
def test_hostile_bodies_are_no_json(server, body):
    server.script = [body] * 2
    with pytest.raises(EndpointError, match=r"last: the answer is not JSON: .{80,120}; check"):
        _endpoint(server, retries=1).chat(MESSAGES)


def test_an_error_of_null_is_none(server):
    server.script = [b'{"error": null, "choices": [{"text": "yes", "finish_reason": "stop"}]}']
    assert _endpoint(server).complete([1]).text == "yes"


def test_a_refused_request_is_not_tried_again(server):
    server.script = ["400"]
    with pytest.raises(EndpointError, match=r"refused the request, HTTP 400: .*prompt too long"):
        _endpoint(server).chat(MESSAGES)
    assert len(server.requests) == 1


def test_a_dead_server(server):
    dead = Endpoint(url="http://127.0.0.1:9/v1", model="m", retries=1, backoff_s=0.01)
    with pytest.raises(EndpointError, match=r"127.0.0.1:9/v1/chat/completions failed 2 times"):
        dead.chat(MESSAGES)


def test_waits_grow_up_to_a_limit(server):
    endpoint = _endpoint(server, backoff_s=1.0, longest_wait_s=10.0)
    for attempt, most in ((0, 1), (1, 2), (3, 8), (9, 10)):
        assert 0.75 * most <= endpoint._wait(attempt, None) <= most
    assert endpoint._wait(0, 5.0) <= 5.0


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://127.0.0.1/v1", "http:///v1"])
def test_urls_are_checked(url):
    with pytest.raises(ValueError, match="expected a URL such as http://127"):
        Endpoint(url=url, model="m")


@pytest.mark.parametrize(
    "url", ["http://10.0.0.7:8000/v1", "http://gpu.example/v1", "http://127.0.0.1.example/v1"]
)
def test_a_key_leaves_this_machine_unencrypted_on_request_only(url):
    with pytest.raises(
        ValueError, match=r"the key would go to .* over plain HTTP.*--key-over-http"
    ):
        Endpoint(url=url, model="m", key="secret")
    assert Endpoint(url=url, model="m", key="secret", key_over_http=True).headers()["Authorization"]
    assert "Authorization" not in Endpoint(url=url, model="m").headers()


@pytest.mark.parametrize(
    "url",
    ["https://gpu.example/v1", "http://localhost:1/v1", "http://127.1.2.3/v1", "http://[::1]/v1"],
)
def test_a_key_goes_where_nobody_else_reads_it(url):
    assert Endpoint(url=url, model="m", key="secret").headers()["Authorization"] == "Bearer secret"


def test_a_redirected_request_takes_the_key_nowhere(server):
    server.script = ["redirect"]
    with pytest.raises(EndpointError, match="refused the request, HTTP 302"):
        _endpoint(server, key="secret").chat(MESSAGES)
    assert len(server.requests) == 1


def _requests(count):
    return [
        Request(id=f"r{index}", ids=(1, 2, index), content=f"say {index}", max_new_tokens=5)
        for index in range(count)
    ]


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_engine_answers_every_prompt(server, api):
    server.default = lambda body: str(body["prompt"][2] if api == "completions" else body)
    engine = OpenAIEngine(_endpoint(server), api=api, concurrency=3)
    replies = {reply.id: reply for reply in engine.answer(make_batches(_requests(7), 2))}
    assert sorted(replies) == [f"r{index}" for index in range(7)]
    assert replies["r5"].output == "5" if api == "completions" else "say 5" in replies["r5"].output
    assert all(reply.first_token_s > 0 and not reply.truncated for reply in replies.values())
    assert {body["path"] for body in server.requests} == {
        "/v1/completions" if api == "completions" else "/v1/chat/completions"
    }


def test_engine_asks_for_drawn_answers(server):
    server.default = "fine"
    engine = OpenAIEngine(_endpoint(server), sampling=Sampling(temperature=0.7, seed=1))
    assert len(list(engine.answer([_requests(3)]))) == 3
    assert {body["temperature"] for body in server.requests} == {0.7}
    assert len({body["seed"] for body in server.requests}) == 3


def test_engine_asks_for_thoughts_that_are_special_tokens(server):
    tokenizer = byte_tokenizer()
    server.default = "hm</think>It is 5.<end>"
    plain = OpenAIEngine(_endpoint(server), tokenizer=tokenizer)
    assert next(plain.answer([_requests(1)])).output == "hm</think>It is 5.<end>"
    assert "skip_special_tokens" not in server.requests[-1]
    tokenizer.add_tokens([AddedToken("</think>", special=True)], special_tokens=True)
    engine = OpenAIEngine(_endpoint(server), tokenizer=tokenizer)
    assert next(engine.answer([_requests(1)])).output == "hm</think>It is 5."
    assert server.requests[-1]["skip_special_tokens"] is False


def test_engine_hands_over_what_it_has_before_it_fails(server, monkeypatch):
    failed = threading.Event()

    class Pool(ThreadPoolExecutor):
        def submit(self, ask, request):
            future = super().submit(ask, request)
            if request.id == "r3":
                future.add_done_callback(lambda _: failed.set())
            return future

    def answer(body):
        number = body["prompt"][2]
        if number > 3:
            failed.wait(60)  # the failure is known before any later prompt is answered
        return "400" if number == 3 else "fine"

    monkeypatch.setattr(openai, "ThreadPoolExecutor", Pool)
    server.default = answer
    engine = OpenAIEngine(_endpoint(server), concurrency=2)
    replies = []

    def take():
        for reply in engine.answer([_requests(20)]):
            replies.append(reply.id)  # noqa: PERF401 # the error would lose them

    with pytest.raises(EndpointError, match="prompt too long"):
        take()
    # Those before it, and the one that was under way beside it.
    assert {"r0", "r1", "r2"} <= set(replies) <= {"r0", "r1", "r2", "r4"}
    assert len(server.requests) <= 5


def test_engine_names_the_served_model_but_not_the_server(server):
    described = OpenAIEngine(_endpoint(server)).describe()
    assert described == {"engine": "openai", "api": "completions", "served_model": "m"}
    with pytest.raises(ValueError, match="concurrency is 0"):
        OpenAIEngine(_endpoint(server), concurrency=0)
