"""`swaa serve` as people run it: HTTP, streams, aborts, two tenants, a kill and a restart."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from swaa.config import SWAAConfig
from tests.vllm.engine import GPU_OPTIONS, ON_GPU, STOCK_TOLERANCE, Judge, prompts_of
from tests.vllm.shared_gpu import sharing

CONFIG = SWAAConfig(window=24, sink_tokens=4, full_layers=(1,), full_decode=(2,), dense_tail=8)
FLAGS = (
    *("--window", "24", "--sink-tokens", "4", "--dense-tail", "8"),
    *("--full-layers", "1", "--full-decode", "2"),
)
VLLM = (
    *("--host", "127.0.0.1", "--dtype", "float32", "--skip-tokenizer-init", "--enforce-eager"),
    *("--block-size", "32", "--max-model-len", "2048", "--max-num-batched-tokens", "64"),
    *("--num-gpu-blocks-override", "400", "--gpu-memory-utilization", "0.1"),
    # Nobody measures how much is free while others on that GPU take or return some.
    *(("--kv-cache-memory-bytes", str(GPU_OPTIONS["kv_cache_memory_bytes"])) if ON_GPU else ()),
)
# A server takes its engine apart into processes, as it would anywhere, and logs what is active.
PROCESSES = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(folder, log, *extra, **environment):
    """`swaa serve` on a free port of 127.0.0.1, ended by its process id."""
    port = free_port()
    command = [sys.executable, "-m", "swaa", "serve", folder, "--recipe", "naive", *FLAGS, *VLLM]
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port), *extra],
            env=os.environ | PROCESSES | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(300)


def wait_until_up(process, address, log):
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-30_000:]
        with contextlib.suppress(urllib.error.URLError, OSError):
            if urllib.request.urlopen(f"{address}/health", timeout=5).status == 200:
                return
        time.sleep(0.5)
    pytest.fail("the server did not come up")


def wait_until_down(address):
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
        except (urllib.error.URLError, OSError):
            return
        time.sleep(0.5)
    pytest.fail("the server outlived the command that started it")


def ask(address, folder, prompt, **options):
    body = {"model": folder, "prompt": prompt, "max_tokens": 16, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True, "logprobs": 0, **options}
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=300)


def answer(address, folder, prompt):
    with ask(address, folder, prompt, logprobs=None) as reply:
        return json.load(reply)["choices"][0]["token_ids"]


def streamed(address, folder, prompt):
    ids = []
    with ask(address, folder, prompt, stream=True, logprobs=None) as reply:
        for line in reply:
            if line.startswith(b"data: {"):
                ids += json.loads(line[6:])["choices"][0].get("token_ids") or []
    return ids


@pytest.fixture
def judge(checkpoint):
    judge = Judge(checkpoint(), CONFIG)

    def agrees(prompt, ids):
        scores = judge.logits(prompt, ids).log_softmax(-1)
        behind = scores.max(-1).values - scores[range(len(ids)), ids]
        # GPUs may choose another token that is as likely, up to the TF32 of full layers.
        return len(ids) == 16 and float(behind.max()) <= (2 * STOCK_TOLERANCE if ON_GPU else 0)

    judge.agrees = agrees
    return judge


@pytest.mark.slow
def test_server(checkpoint, tmp_path, judge):
    folder, log = checkpoint(), tmp_path / "log"
    prompts = prompts_of(300, 65, 140, 90)
    with server(folder, log) as (process, address):
        wait_until_up(process, address, log)
        assert judge.agrees(prompts[0], streamed(address, folder, prompts[0]))

        # A client that leaves in the middle of a long prompt.
        (long,) = prompts_of(1900, seed=9)
        with contextlib.suppress(OSError):
            left = ask(address, folder, long, stream=True)
            left.close()

        # Two tenants at once.
        # Beam search asks anew for every token; phases would not hold.
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(address, folder, prompts[0], use_beam_search=True, n=2)

        said = {}
        tenants = [
            threading.Thread(
                target=lambda n=n: said.update({n: answer(address, folder, prompts[n])})
            )
            for n in (1, 2)
        ]
        for tenant in tenants:
            tenant.start()
        for tenant in tenants:
            tenant.join()
        assert all(judge.agrees(prompts[n], said[n]) for n in (1, 2))
        text = log.read_text()
        assert "swaa adapted 3 of 4 layers" in text
        assert "every worker confirms the recipe" in text
        process.kill()
        wait_until_down(address)

    with server(folder, log) as (process, address):
        wait_until_up(process, address, log)
        assert judge.agrees(prompts[3], answer(address, folder, prompts[3]))


def left_behind(marker):
    """Processes with a variable in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["asked", "killed"])
def test_server_that_ends_while_it_starts_leaves_nothing_behind(checkpoint, tmp_path, number):
    log, marker = tmp_path / "log", f"{number.name} of {tmp_path}"
    with server(checkpoint(), log, SWAA_TEST_MARKER=marker) as (process, _):
        for _ in range(600):
            if b"swaa adapted" in log.read_bytes():  # the engine core is busy, nothing answers yet
                break
            time.sleep(0.1)
        assert len(left_behind(marker)) > 1
        process.send_signal(number)
        for _ in range(120):
            if not left_behind(marker):
                break
            time.sleep(1)
        assert left_behind(marker) == []


@pytest.mark.slow
@pytest.mark.parametrize("split", ["tensor", "data"])
def test_two_processes_serve_one_model(checkpoint, tmp_path, judge, split):
    folder, log = checkpoint(), tmp_path / "log"
    prompts = prompts_of(65, 200, 120, 33)
    binding = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    flags = [f"--{split}-parallel-size", "2"]
    for name, value in sharing().items():
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    with server(folder, log, *flags, **binding) as (process, address):
        wait_until_up(process, address, log)
        for prompt in prompts:
            assert judge.agrees(prompt, answer(address, folder, prompt))
    text = log.read_text()
    reports = re.findall(r"rank (\d): swaa adapted 3 of 4 layers", text)
    # Engines that share the requests number their ranks from 0, each for itself.
    assert sorted(reports) == (["0", "1"] if split == "tensor" else ["0", "0"])
    assert "every worker confirms the recipe" in text


def test_server_whose_plugin_is_filtered_out(checkpoint, tmp_path):
    log = tmp_path / "log"
    with server(checkpoint(), log, VLLM_PLUGINS="another") as (process, _):
        assert process.wait(300) == 2
    assert "VLLM_PLUGINS=another keeps swaa out" in log.read_text()


@pytest.mark.slow
def test_server_whose_workers_do_not_report_is_ended(checkpoint, tmp_path):
    from swaa.integrations.launch import NOT_ACTIVE

    log = tmp_path / "log"
    code = (
        "import sys; from swaa.integrations.vllm import launch, settings;"
        "launch.REPORTS = 'NOBODY_READS_THIS';"
        "sys.exit(launch.serve(sys.argv[1:], settings.parse({'window': 24})))"
    )
    arguments = [checkpoint(), *VLLM, "--port", str(free_port())]
    with log.open("wb") as out:
        ran = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=os.environ | PROCESSES,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=600,
            check=False,
        )
    assert ran.returncode == NOT_ACTIVE
    assert "no worker says that swaa is active" in log.read_text()
