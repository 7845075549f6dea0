"""The load generator against a real server: lengths, times, faults, counts."""

import dataclasses
import itertools
import socket
import statistics
import threading
from types import SimpleNamespace

import pytest
import torch

from swaa.benchmark.serve import client as serve_client
from swaa.benchmark.serve import load as serve_load
from swaa.benchmark.serve.alone import ask_alone
from swaa.benchmark.serve.client import encode_request, request
from swaa.benchmark.serve.load import run_load, samples, summarize
from swaa.benchmark.serve.watch import watching
from swaa.benchmark.serve.workload import PRESETS, Workload
from swaa.http.address import Address
from tests.benchmark.completions import FIRST_S, NEXT_S, completions

SMALL = Workload(input_tokens=20, output_tokens=6, requests=5)


def _address(server, **options):
    return Address(url=server.url, model="m", **options)


def _ask(server, workload=SMALL, **options):
    address = _address(server, **options)
    body = encode_request(address, next(workload.prompts()), workload)
    return request(address, body, input_tokens=workload.input_tokens)


def test_prompts_have_exactly_the_length_and_never_repeat():
    workload = Workload(input_tokens=300, output_tokens=1, requests=20, vocabulary=1000)
    prompts = list(workload.prompts())
    assert {len(prompt) for prompt in prompts} == {300}
    assert len(set(map(tuple, prompts))) == 21
    ids = set(itertools.chain(*prompts))
    assert min(ids) >= 100
    assert max(ids) < 1000
    assert len(ids) > 800
    assert prompts == list(workload.prompts())
    assert prompts[0] != next(workload.prompts("other"))


def test_lengths_are_spread_by_ratio():
    workload = Workload(input_tokens=64_000, shortest_tokens=1_000, output_tokens=1, requests=2000)
    lengths = torch.tensor(workload.lengths(), dtype=torch.float64)
    assert 1_000 <= lengths.min() < 1_050
    assert 61_000 < lengths.max() <= 64_000
    # As many between 1,000 and 8,000 as between 8,000 and 64,000.
    assert (lengths < 8_000).double().mean().item() == pytest.approx(0.5, abs=0.04)
    few = Workload(input_tokens=9, shortest_tokens=3, output_tokens=1, requests=30)
    warm, *prompts = few.prompts()
    assert len(warm) == 9
    assert [len(prompt) for prompt in prompts] == few.lengths()
    assert set(few.lengths()) > {3, 9}


def test_prompts_of_several_lengths_are_counted_as_they_are():
    workload = Workload(input_tokens=40, shortest_tokens=4, output_tokens=2, requests=6)
    with completions(script=[None, None, "500"]) as server:
        load = run_load(_address(server), workload)
    kept = samples(load)
    assert [sample["input_tokens"] for sample in kept] == workload.lengths()
    read = sum(sample["input_tokens"] for sample in kept if sample["error"] is None)
    whole = summarize(load)[0]
    assert whole["finished"] == 5
    assert whole["total_tokens_per_s"] == pytest.approx((read + 10) / whole["seconds"])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (None, {"equal": 3, "tied": 0, "different": 0, "largest_gap": 0.0}),
        (7, {"equal": 0, "tied": 3, "different": 0, "largest_gap": pytest.approx(0.05)}),
        (8, {"equal": 0, "tied": 0, "different": 3, "largest_gap": pytest.approx(1.5)}),
        (9, {"equal": 0, "tied": 0, "different": 3, "largest_gap": None}),
    ],
    ids=["equal", "tie", "unlikely", "unheard_of"],
)
def test_answers_under_a_load_are_compared_with_the_same_alone(other, expected):
    workload = dataclasses.replace(SMALL, requests=7, checked=3)
    with completions(together=7, other=other) as server:
        load = run_load(_address(server), workload)
        row = ask_alone(load, _address(server))
    assert row == {"metric": "alone", "checked": 3, "failed": 0} | expected
    loaded = [body["prompt"] for body in server.bodies[1:8]]
    alone = [body["prompt"] for body in server.bodies[8:]]
    assert len(alone) == 3
    assert all(prompt in loaded for prompt in alone)
    assert not any("logprobs" in body for body in server.bodies[:8])


def test_what_cannot_be_compared_is_counted():
    workload = dataclasses.replace(SMALL, requests=2, checked=2)
    with completions(script=[None, "500", None, None, "500"]) as server:
        load = run_load(_address(server), dataclasses.replace(workload, concurrency=1))
        row = ask_alone(load, _address(server))
    assert (row["checked"], row["failed"], row["largest_gap"]) == (2, 2, None)


def test_the_engine_is_watched():
    def metrics(used, preempted):
        labels = '{engine="0",model_name="m"}'
        return (
            "# HELP vllm:kv_cache_usage_perc KV-cache usage\n"
            f"vllm:kv_cache_usage_perc{labels} {used}\n"
            f"vllm:num_preemptions_total{labels} {preempted}\n"
            f"vllm:num_requests_running{labels} 3.0\n"
            "process_open_fds 9.0\n"
        )

    with completions(metrics=[metrics(0.1, 4.0), metrics(0.9, 6.0)]) as server:
        with watching(_address(server)) as watch:
            pass
        assert watch.row() == {
            "metric": "engine",
            "kv_used_max": 0.9,
            "kv_used_mean": pytest.approx(0.5),
            "running_max": 3,
            "waiting_max": 0,
            "preemptions": 2,
        }
    with completions() as server, watching(_address(server)) as watch:
        pass
    assert watch.row() is None


def test_arrivals_are_all_at_once_or_a_poisson_process():
    assert SMALL.arrivals() == [0.0] * 5
    times = Workload(input_tokens=1, output_tokens=1, requests=4000, rate=5.0).arrivals()
    gaps = torch.tensor(times).diff()
    assert times[0] == 0
    assert bool((gaps >= 0).all())
    # Exponential gaps: their mean and their deviation are both 1 / rate.
    assert gaps.mean().item() == pytest.approx(0.2, rel=0.1)
    assert gaps.std().item() == pytest.approx(0.2, rel=0.15)


def test_the_papers_workload():
    paper = PRESETS["paper"]
    assert (paper.input_tokens, paper.output_tokens, paper.requests) == (128_000, 512, 100)
    assert paper.rate is None
    assert paper.concurrency is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_tokens": 0}, "input_tokens is 0; expected at least 1"),
        ({"concurrency": 0}, "concurrency is 0; expected at least 1"),
        ({"rate": 0.0}, "rate is 0.0; expected requests a second, above 0"),
        ({"vocabulary": 3}, "vocabulary is 3; expected at least 10"),
        ({"shortest_tokens": 0}, "shortest_tokens is 0; expected at least 1"),
        ({"shortest_tokens": 2}, "shortest_tokens is 2; expected at most input_tokens, 1"),
        ({"checked": 2}, "checked is 2; expected at most requests, 1"),
    ],
)
def test_a_workload_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        Workload(**{"input_tokens": 1, "output_tokens": 1, "requests": 1, **change})


def test_pieces_are_timed_when_they_come(monkeypatch):
    read, parse = threading.Semaphore(0), serve_client._object
    monkeypatch.setattr(serve_client, "_object", lambda data: read.release() or parse(data))
    with completions(pace=read) as server:
        timing = _ask(server, key="secret")
    assert timing.error is None
    (written,) = server.written
    # Both ends have the same clock, and a piece is written when the one before it was read: had
    # they been timed later than they came, the two would not alternate.
    moments = list(itertools.chain(*zip(written, timing.pieces, strict=True)))
    assert moments == sorted(moments)
    assert timing.first_token_s >= FIRST_S
    assert timing.new_tokens == 6
    assert timing.token_s == (timing.pieces[-1] - timing.pieces[0]) / 5
    (body,) = server.bodies
    assert body["key"] == "Bearer secret"
    assert len(body["prompt"]) == 20
    assert (body["max_tokens"], body["stream"], body["ignore_eos"]) == (6, True, True)


def test_tokens_are_pieces_where_the_server_does_not_count():
    with completions(script=["uncounted"]) as server:
        assert _ask(server).new_tokens == 6


def test_one_token_has_no_time_per_token():
    with completions() as server:
        timing = _ask(server, Workload(input_tokens=3, output_tokens=1, requests=1))
    assert timing.token_s is None
    assert timing.latency_s == timing.first_token_s


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "HTTP 500: oops at line 1"),
        ("unstreamed", "the server does not stream"),
        ("malformed", "a piece is not JSON: {not json"),
        ("list", "a chunk is not a JSON object: [1]"),
        ("words", "a choice is not a JSON object: 'x'"),
        ("deep", f"a piece is not JSON: {'[' * 80}"),
        ("usage", "the usage is not an object of whole numbers: [1]"),
        ("counts", "the usage is not an object of whole numbers: {'completion_tokens': '6'}"),
        ("error", 'the server says: {"message": "overload"}'),
        ("broken off", "the answer broke off"),
        ("bad chunk", "the answer broke off"),
        ("empty", "the answer is empty"),
        ("one more", "the server counts 21 prompt tokens, expected 20"),
        ("hangs", "no data for 0.2 s"),
    ],
)
def test_a_broken_answer_is_said_and_not_raised(fault, reason):
    with completions(script=[fault]) as server:
        timeout = 0.2 if fault == "hangs" else 60.0
        assert _ask(server, timeout_s=timeout).error == reason


def test_a_dead_server_is_said():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # bound, so nobody else's; it does not listen
        address = Address(url=f"http://127.0.0.1:{port}/v1", model="m")
        with pytest.raises(ConnectionError, match="the first request failed: Connection refused"):
            run_load(address, SMALL)


def test_a_load_is_summed_up():
    with completions() as server:
        progress = []
        load = run_load(_address(server), SMALL, progress=progress.append)
    assert progress == [1, 2, 3, 4, 5]
    assert len({tuple(body["prompt"]) for body in server.bodies}) == 6  # the warm-up's is another
    rows = {row["metric"]: row for row in summarize(load)}
    whole = rows["requests"]
    assert (whole["requests"], whole["finished"], whole["failed"]) == (5, 5, 0)
    assert whole["short"] == 0
    last = max(timing.pieces[-1] for timing in load.timings)
    assert whole["seconds"] == last - load.started
    assert whole["output_tokens_per_s"] == pytest.approx(30 / whole["seconds"])
    assert whole["total_tokens_per_s"] == pytest.approx(130 / whole["seconds"])
    assert whole["requests_per_s"] == pytest.approx(5 / whole["seconds"])
    assert {name: row["count"] for name, row in rows.items() if "count" in row} == {
        "ttft_s": 5,
        "tpot_s": 5,
        "itl_s": 25,
        "latency_s": 5,
    }
    firsts = torch.tensor([t.first_token_s for t in load.timings], dtype=torch.float64)
    for rank, name in ((0.2, "p20"), (0.5, "p50"), (0.8, "p80")):
        assert rows["ttft_s"][name] == pytest.approx(firsts.quantile(rank).item())
    assert rows["ttft_s"]["p99"] == pytest.approx(firsts.quantile(0.99).item())
    assert rows["ttft_s"]["mean"] == pytest.approx(firsts.mean().item())
    per_token = [timing.token_s for timing in load.timings]
    assert rows["tpot_s"]["p50"] == statistics.median(per_token)
    # The first piece may be seen late, so that the others seem to follow sooner; the last cannot.
    assert rows["latency_s"]["p20"] >= FIRST_S + 5 * NEXT_S


def test_failures_are_counted_and_left_out_of_the_times():
    script = [None, "500", "malformed", "500"]
    with completions(script=script) as server:
        load = run_load(_address(server), SMALL)
    whole, ttft, *_ = summarize(load)
    assert (whole["finished"], whole["failed"], ttft["count"]) == (2, 3, 2)
    assert whole["failures"] == {
        "HTTP 500: oops at line 1": 2,
        "a piece is not JSON: {not json": 1,
    }
    kept = samples(load)
    assert [sample["id"] for sample in kept] == [0, 1, 2, 3, 4]
    assert sum(sample["error"] is None for sample in kept) == 2
    assert all(("ttft_s" in sample) == (sample["error"] is None) for sample in kept)


def test_all_at_once_means_all_at_once():
    workload = Workload(input_tokens=5, output_tokens=2, requests=30)
    with completions(together=30) as server:
        load = run_load(_address(server), workload)
    assert server.most_under_way == 30
    assert all(timing.error is None for timing in load.timings)


def test_no_more_requests_under_way_than_allowed():
    workload = Workload(input_tokens=5, output_tokens=3, requests=7, concurrency=2)
    with completions(together=2) as server:
        load = run_load(_address(server), workload)
    assert server.most_under_way == 2
    assert len(load.finished) == 7


def test_no_request_is_sent_before_it_is_due_or_waits_for_an_answer():
    workload = Workload(input_tokens=5, output_tokens=2, requests=6, rate=20.0)
    with completions(together=6) as server:
        load = run_load(_address(server), workload)
    due = [load.started + seconds for seconds in workload.arrivals()]
    assert all(timing.sent >= at for timing, at in zip(load.timings, due, strict=True))
    assert server.most_under_way == 6


def test_requests_are_sent_when_they_are_due(monkeypatch):
    arrivals = Workload(input_tokens=5, output_tokens=2, requests=6, rate=20.0).arrivals()
    clock, sent = SimpleNamespace(now=100.0), []

    def sleep(seconds):
        clock.now += seconds

    timeless = SimpleNamespace(perf_counter=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(serve_load, "time", timeless)
    threads = [SimpleNamespace(start=lambda: sent.append(clock.now))] * 6
    serve_load._start(threads, arrivals, threading.Semaphore(6), 100.0)
    assert sent == pytest.approx([100.0 + due for due in arrivals])
