"""`swaa bench serve`: recipes one after another, results that resume, servers that end."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from swaa import results
from swaa.benchmark.serve import measure as serve
from swaa.benchmark.serve import process as serve_process
from swaa.benchmark.serve.measure import Endpoint, Launcher, ServeRun, arguments_of, execute, find
from swaa.benchmark.serve.process import Server, launch_command, running
from swaa.benchmark.serve.workload import Workload
from swaa.cli import main
from swaa.recipes import resolve
from tests.benchmark.completions import completions
from tests.documents import ROOT

SMALL = Workload(input_tokens=12, output_tokens=3, requests=3)
STAND_IN = [sys.executable, "-m", "tests.benchmark.completions"]
ENDPOINT = ("--recipes", "fast", "--workload", "smoke", "--requests", "2")


@pytest.fixture
def stand_in(monkeypatch):
    """`vllm serve` replaced by a small server; the commands that would have started vLLM."""
    asked = []

    def command(model, recipe, *, full):
        asked.append(launch_command(model, recipe, full=full))
        return STAND_IN

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(serve, "launch_command", command)
    return asked


def _run(recipe="fast", arguments=(), workload=SMALL):
    source = Launcher(arguments=arguments, timeout_s=120, device="a GPU")
    config = resolve(recipe)
    return ServeRun(
        model="folder/tiny", setting=recipe, config=config, workload=workload, source=source
    )


def _gone(pid):
    """Whether no process of this group is left, those that only wait to be reaped aside."""
    for _ in range(600):
        found = subprocess.run(
            ["ps", "-o", "stat=", "-g", str(pid)], capture_output=True, text=True
        )
        if all(state.startswith("Z") for state in found.stdout.split()):
            return True
        time.sleep(0.1)
    return False


def test_each_recipe_has_its_command():
    assert launch_command("m", "full", full=True)[1:] == [
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        "m",
    ]
    assert launch_command("m", "fast", full=False)[1:] == [
        *("-m", "swaa", "serve", "m"),
        *("--recipe", "fast"),
    ]


def test_secrets_reach_the_server_and_no_result():
    run = _run(arguments=("--hf-token", "one", "--api-key=two", "three", "--max-model-len", "15"))
    assert arguments_of(run)[:3] == ["--hf-token", "one", "--api-key=two"]
    other = _run(arguments=("--hf-token", "1", "--api-key=2", "3", "--max-model-len", "15"))
    assert run.identity == other.identity
    shown = ["--hf-token", "***", "--api-key=***", "***", "--max-model-len", "15"]
    assert run.identity["arguments"] == shown


def test_the_server_gets_the_length_that_the_workload_needs():
    assert arguments_of(_run(arguments=("--dtype", "float16"))) == [
        *("--dtype", "float16"),
        *("--max-model-len", "15"),
    ]
    assert arguments_of(_run(arguments=("--max-model-len=99",))) == ["--max-model-len=99"]


def test_a_recipe_is_served_measured_kept_and_skipped(stand_in, tmp_path):
    run = _run(arguments=("--chat-template", "/a/b.jinja"))
    assert find(run, folder=tmp_path) is None
    (result,) = execute(run, folder=tmp_path)
    assert result == find(run, folder=tmp_path)
    rows = {row["metric"]: row for row in result.rows}
    assert (rows["requests"]["finished"], rows["requests"]["failed"]) == (3, 0)
    assert rows["server"]["kv_tokens"] == 12_345
    assert rows["server"]["start_s"] > 0
    assert result.config["swaa"] == resolve("fast").to_dict()
    assert result.config["arguments"][:2] == ["--chat-template", "b.jinja"]
    assert result.provenance.device == "a GPU"
    path = results.result_path("serve", run.name, run.identity, folder=tmp_path)
    assert len(results.read_samples(path)) == 3
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".json", ".jsonl"]
    assert len(stand_in) == 1


def test_workloads_go_to_one_server_and_each_result_is_kept_as_it_ends(stand_in, tmp_path):
    longer = Workload(input_tokens=30, output_tokens=3, requests=2, checked=1)
    runs = [
        dataclasses.replace(_run(workload=workload), longest=33) for workload in (SMALL, longer)
    ]
    assert all(arguments_of(run)[-1] == "33" for run in runs)
    ended = []
    first, second = execute(*runs, folder=tmp_path, progress=ended.append)
    assert len(stand_in) == 1
    assert ended == [1, 2, 3, 4, 5]
    assert [find(run, folder=tmp_path) for run in runs] == [first, second]
    rows = {row["metric"]: row for row in second.rows}
    assert (rows["alone"]["checked"], rows["alone"]["equal"]) == (1, 1)

    dies = [
        dataclasses.replace(_run(workload=workload, arguments=("--dies-after", "5")), longest=33)
        for workload in (SMALL, longer)
    ]
    with pytest.raises(ConnectionError, match="ended with code 17"):
        execute(*dies, folder=tmp_path)
    assert find(dies[0], folder=tmp_path) is not None
    assert find(dies[1], folder=tmp_path) is None


def test_a_server_that_dies_midway_leaves_no_result_but_its_log(stand_in, tmp_path):
    run = _run(arguments=("--dies-after", "2"))
    with pytest.raises(ConnectionError, match="ended with code 17; its last line: out of memory"):
        execute(run, folder=tmp_path)
    assert find(run, folder=tmp_path) is None
    (left,) = (tmp_path / "serve").iterdir()
    assert left.suffix == ".log"


def test_a_server_that_does_not_start(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    log = tmp_path / "log"
    with (
        pytest.raises(ConnectionError, match="ended with code 1; its last line: no such model"),
        running(command, log=log, timeout_s=120),
    ):
        pytest.fail("the block runs without a server")
    assert "no such model" in log.read_text()


@pytest.fixture
def taken(monkeypatch):
    """Gives out a port that is bound already, so many times, in the place of a free one."""
    real, given = serve_process._free_port, []

    def put(times):
        def free_port():
            given.append(port if len(given) < times else real())
            return given[-1]

        monkeypatch.setattr(serve_process, "_free_port", free_port)
        return given

    monkeypatch.chdir(ROOT)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        yield put


def test_where_another_takes_the_port_the_next_one_is_tried(taken, tmp_path):
    given = taken(1)
    with running(STAND_IN, log=tmp_path / "log", timeout_s=120) as server:
        assert server.url == f"http://127.0.0.1:{given[1]}/v1"
        assert server.kv_tokens() == 12_345
    assert len(given) == 2


def test_ports_are_not_tried_for_ever(taken, tmp_path):
    given = taken(99)
    with (
        pytest.raises(ConnectionError, match=r"code 1; its last line: .* Address already in use"),
        running(STAND_IN, log=tmp_path / "log", timeout_s=120),
    ):
        pytest.fail("the block runs without a server")
    assert len(given) == 3


def test_what_fails_for_another_reason_is_not_tried_again(taken, tmp_path):
    given = taken(0)
    with (
        pytest.raises(ConnectionError, match="ended with code 7"),
        running([sys.executable, "-c", "exit(7)"], log=tmp_path / "log", timeout_s=120),
    ):
        pytest.fail("the block runs without a server")
    assert len(given) == 1


def test_a_server_that_fails_its_first_answer_names_its_log(stand_in, tmp_path):
    message = r"the first request failed: .* \(its log: .*\.log\)$"
    with pytest.raises(ConnectionError, match=message):
        execute(_run(arguments=("--refuses",)), folder=tmp_path)


@pytest.mark.parametrize("nested", [False, True])
def test_token_ids_that_the_model_lacks_are_refused(tmp_path, capsys, nested):
    sizes = {"vocab_size": 97}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": sizes} if nested else sizes))
    assert main(["bench", "serve", str(tmp_path), "--results", str(tmp_path)]) == 2
    said = "token ids are drawn below 10000, the model has 97: give --vocabulary 97"
    assert capsys.readouterr().err.splitlines()[-1] == f"swaa bench serve: {said}"


def test_a_server_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    log = tmp_path / "log"

    def never(server):  # but its words are waited for
        while not log.read_text().endswith("\n"):
            time.sleep(0.01)
        return False

    monkeypatch.setattr(Server, "_answers", never)
    command = [
        sys.executable,
        "-c",
        "import os, time; print(os.getpid(), flush=True); time.sleep(99)",
    ]
    with (
        pytest.raises(ConnectionError, match=r"no answer in 0.7 s; its last line: \d+"),
        running(command, log=log, timeout_s=0.7),
    ):
        pytest.fail("the block runs without a server")
    assert _gone(int(log.read_text()))


def test_processes_that_a_server_leaves_behind_are_ended_too(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with running([*STAND_IN, "--stubborn"], log=tmp_path / "log", timeout_s=120) as server:
        pid = server._process.pid
        states = subprocess.run(
            ["ps", "-o", "pid=", "-g", str(pid)], capture_output=True, text=True
        )
        assert len(states.stdout.split()) == 2
    assert _gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a kill cannot be passed on")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_server_never_outlives_the_command(tmp_path, number):
    code = (
        "import signal, sys, time; from pathlib import Path;"
        # Shells start what runs in the background with interrupts ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from swaa.benchmark.serve.process import running\n"
        "with running(sys.argv[2:], log=Path(sys.argv[1]), timeout_s=120) as server:\n"
        "    print(server._process.pid, flush=True); time.sleep(999)\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log"), *STAND_IN],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    pid = int(command.stdout.readline())
    os.kill(command.pid, number)
    assert command.wait(120) != 0
    command.stdout.close()
    assert _gone(pid)


def test_an_endpoint_is_measured_once_with_prompts_of_its_own(tmp_path, capsys, prints):
    with completions() as server:
        words = ["bench", "serve", "served", *ENDPOINT, "--results", str(tmp_path)]
        words += ["--endpoint", server.url, "--device-name", "a machine"]
        first = prints(*words)
        assert prints(*words) == first
        assert len(server.bodies) == 3  # one warms up
        assert main([*words, "--again", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["provenance"]["device"] == "a machine"
    assert result["config"]["workload"]["requests"] == 2
    # A prefix cache must not know the prompts of the second measurement.
    assert server.bodies[0]["prompt"] != server.bodies[3]["prompt"]
    assert server.bodies[0]["model"] == "served"
    assert "fast" in first
    assert "TTFT s" in first


def test_several_workloads_with_numbers_of_their_own(tmp_path, prints):
    with completions() as server:
        shown = prints(
            *("bench", "serve", "served", "--recipes", "fast", "--endpoint", server.url),
            *("--workload", "smoke requests=3 checked=2,mixed rate=50 requests=2"),
            *("--input-tokens", "20", "--output-tokens", "3", "--shortest-tokens", "5"),
            *("--results", tmp_path),
        )
    lines = shown.splitlines()
    assert "to 20" in lines[2]
    assert "to 20" in lines[3]
    assert "fast: of 2 answers, asked again alone: 2 equal, 0 tied, 0 different, 0 failed" in lines
    made = [results.load(path) for path in sorted((tmp_path / "serve").glob("*.json"))]
    asked = [result.config["workload"] for result in made]
    assert sorted((one["requests"], one["rate"], one["checked"]) for one in asked) == [
        (2, 50.0, 0),
        (3, None, 2),
    ]


def test_an_endpoint_that_dies_midway_leaves_no_result(tmp_path):
    process = subprocess.Popen(
        [*STAND_IN, "--port", "0", "--dies-after", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    url = next(line.strip() for line in process.stdout if line.startswith("http"))
    workload = Workload(input_tokens=12, output_tokens=3, requests=4, concurrency=1)
    run = dataclasses.replace(_run(workload=workload), source=Endpoint(url=url, model="m"))
    try:
        with pytest.raises(ConnectionError, match="died after 1 of 4 requests"):
            execute(run, folder=tmp_path)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert find(run, folder=tmp_path) is None


def test_an_endpoint_that_answers_nothing(tmp_path):
    with completions(script=[None, "500", "500", "error"]) as server:
        run = dataclasses.replace(_run(), source=Endpoint(url=server.url, model="m"))
        with pytest.raises(ConnectionError, match="answered no request: 2 x HTTP 500"):
            execute(run, folder=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workload", "papr"], "unknown workload 'papr'; choose from paper, single, long"),
        (["--workload", "paper rate"], "--workload 'paper rate': 'rate' is not understood; write"),
        (["--workload", "long requests=few"], "--workload 'long requests=few': 'requests=few' is"),
        (["--workload", "long size=3"], "--workload 'long size=3': 'size=3' is not understood"),
        (["--checked", "33"], "checked is 33; expected at most requests, 32"),
        (["--recipes", "fast,fast"], "--recipes fast,fast names fast twice"),
        (["--recipes", "fst"], "unknown recipe 'fst'"),
        (["--device-name", "x"], "--device-name would do nothing without --endpoint"),
        (["--served-model", "x"], "--served-model would do nothing without --endpoint"),
        (["--endpoint", "http://a/v1"], "a server runs one recipe; name it alone: --recipes R"),
        (["--endpoint", "http://a/v1", "--vllm", "--x"], "--vllm would do nothing with --endpoint"),
        (["--requests", "0"], "requests is 0; expected at least 1"),
        (["--endpoint", "a", "--recipes", "fast"], "the endpoint is 'a'; expected a URL such as"),
    ],
)
def test_a_mistake_is_one_line(words, message, refusal, tmp_path):
    assert refusal("bench", "serve", "m", "--results", str(tmp_path), *words).startswith(
        f"swaa bench serve: {message}"
    )
