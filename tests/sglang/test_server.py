"""`swaa serve --engine sglang` as people run it: HTTP, streams, aborts, an end."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from swaa.config import SWAAConfig
from tests.served import Judge, prompts_of
from tests.sglang.conftest import ON_GPU
from tests.sglang.engine import GPU_OPTIONS, answer_of

CONFIG = SWAAConfig(window=24, sink_tokens=4, full_layers=(1,), full_decode=(2,), dense_tail=8)
KNOBS = ("--window", "24", "--sink-tokens", "4", "--full-layers", "1", "--full-decode", "2")
FLAGS = {
    "device": "cuda" if ON_GPU else "cpu",
    "dtype": "float32",
    "context_length": 2048,
    "max_total_tokens": 4096,
    "chunked_prefill_size": 64,
    "max_running_requests": 8,
    **(GPU_OPTIONS if ON_GPU else {}),
}


def words_of(flags):
    for name, value in flags.items():
        yield from (f"--{name.replace('_', '-')}", str(value))


class Server:
    """A server of the tests' model; it is ended by its process id."""

    def __init__(self, folder, log):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        command = [sys.executable, "-m", "swaa", "serve", folder, "--engine", "sglang"]
        command += [*KNOBS, "--dense-tail", "8", *words_of(FLAGS), "--port", str(self.port)]
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, "--skip-tokenizer-init", "--skip-server-warmup"],
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait(self, words, seconds=400):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if words in self.log.read_text():
                return
            time.sleep(0.5)
        pytest.fail(f"{words!r} was not said: {self.log.read_text()[-3000:]}")

    def ask(self, prompt, max_tokens, stop_after=None, **more):
        """One streamed request; None where it was given up after so many pieces."""
        body = {
            "input_ids": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": max_tokens, **more},
            "stream": True,
            "return_logprob": True,
        }
        body["sampling_params"]["ignore_eos"] = True
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/generate",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        ids, said, pieces = [], [], 0
        with urllib.request.urlopen(request, timeout=300) as response:
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                piece = json.loads(line[6:])
                pieces += 1
                if pieces == stop_after:
                    return None
                new = piece["output_ids"]
                ids = new if len(new) > len(ids) and new[: len(ids)] == ids else ids + new
                said = piece["meta_info"]["output_token_logprobs"]
        assert pieces > 1 or max_tokens == 1
        return answer_of({"output_ids": ids, "meta_info": {"output_token_logprobs": said}})


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    made = Server(checkpoint(), tmp_path_factory.mktemp("server") / "log")
    made.wait("every worker confirms the recipe")
    yield made
    if made.process.poll() is None:
        made.process.send_signal(signal.SIGINT)
        made.process.wait(timeout=120)


def test_streams_next_to_requests_that_are_given_up(server, checkpoint):
    prompts = prompts_of(100, 37, 150, 70, 90, 31, seed=11)
    found = {}

    def ask(number):
        given_up = number % 2
        found[number] = server.ask(
            prompts[number], 200 if given_up else 30, stop_after=3 if given_up else None
        )

    for _round in range(2):  # the second one reuses what the first one left
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        judge = Judge(checkpoint(), CONFIG)
        for number, prompt in enumerate(prompts):
            if number % 2:
                assert found[number] is None
            else:
                assert len(found[number].token_ids) == 30
                judge.check(prompt, found[number])


def test_beam_search_is_refused_and_the_server_goes_on(server):
    with pytest.raises((urllib.error.HTTPError, AssertionError, KeyError)):
        server.ask([1, 2, 3], 4, beam_width=2)
    assert "beam search is not served" in server.log.read_text()
    assert len(server.ask([1, 2, 3], 4).token_ids) == 4


def test_it_says_what_is_active_and_ends_when_it_is_told_to(server):
    said = server.log.read_text()
    assert re.search(r"swaa adapted 3 of 4 layers \(1 full, 1 full decode, 2 sliding\)", said)
    server.process.send_signal(signal.SIGINT)
    server.process.wait(timeout=120)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port), 5)
