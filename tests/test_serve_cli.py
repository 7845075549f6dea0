import contextlib
import dataclasses
import http.server
import importlib.util
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from swaa.cli import main
from swaa.config import SWAAConfig
from swaa.integrations import launch as running
from swaa.integrations.address import Address
from swaa.integrations.settings import Settings
from swaa.integrations.sglang import launch as sglang_launch
from swaa.integrations.vllm import launch
from swaa.integrations.vllm.address import find_address
from swaa.recipes import load_recipe


@pytest.fixture
def handed(monkeypatch):
    """What `swaa serve` hands to vLLM."""
    calls = []
    monkeypatch.setattr(launch, "check_installed", lambda: None)
    monkeypatch.setattr(launch, "serve", lambda *given: calls.append(given) or 0)
    return calls


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "folder", "--recipe", "fast", "--window", "512", "--port", "9000", "--uvloop"],
        ["serve", "--recipe", "fast", "folder", "--port", "9000", "--uvloop", "--window", "512"],
    ],
    ids=["behind", "before"],
)
def test_own_flags_are_taken_and_the_rest_is_handed_on(handed, words):
    assert main(words) == 0
    ((arguments, settings),) = handed
    assert arguments == ["folder", "--port", "9000", "--uvloop", "--host", "127.0.0.1"]
    assert settings == Settings(config=dataclasses.replace(load_recipe("fast"), window=512))


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["--host", "0.0.0.0"], None),
        (["--host="], None),
        (["--uds", "/tmp/s"], None),
        (["--headless"], None),
        ([], "host: 10.0.0.7\n"),
    ],
    ids=["host", "empty", "uds", "headless", "file"],
)
def test_a_server_listens_elsewhere_than_here_on_request_only(
    handed, tmp_path, capsys, words, file
):
    if file is not None:
        (tmp_path / "flags.yaml").write_text(file)
        words = ["--config", str(tmp_path / "flags.yaml")]
    assert main(["serve", "folder", "--recipe", "fast", *words]) == 0
    assert main(["serve", "folder", "--recipe", "fast", "--port", "9000"]) == 0
    assert [arguments for arguments, _ in handed] == [
        ["folder", *words],
        ["folder", "--port", "9000", "--host", "127.0.0.1"],
    ]
    assert capsys.readouterr().err.count("listens on this machine only") == 1


@pytest.mark.parametrize("words", [["folder", "--engine", "sglang"], ["--engine=sglang", "folder"]])
def test_the_engine_that_serves(handed, monkeypatch, words):
    monkeypatch.setattr(sglang_launch, "check_installed", lambda: None)
    asked = []
    monkeypatch.setattr(sglang_launch, "serve", lambda *given: asked.append(given) or 0)
    assert main(["serve", *words, "--recipe", "fast", "--tp-size", "2"]) == 0
    assert asked == [(["folder", "--tp-size", "2"], Settings(config=load_recipe("fast")))]
    assert not handed


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ([], ["--attention-backend", "swaa_triton", "--cuda-graph-backend-prefill", "disabled"]),
        (["--device", "cpu"], ["--attention-backend", "swaa_torch_native"]),
        (["--device=cpu", "--attention-backend", "swaa_triton"], []),
        (
            ["--prefill-attention-backend=swaa_triton"],
            ["--cuda-graph-backend-prefill", "disabled"],
        ),
        (
            ["--cuda-graph-backend-prefill", "disabled"],
            ["--attention-backend", "swaa_triton"],
        ),
    ],
    ids=["gpu", "cpu", "named", "prefill_named", "graphs_named"],
)
def test_flags_that_sglang_needs(monkeypatch, words, flags):
    given = []
    monkeypatch.setattr(sglang_launch, "run", lambda *call, **named: given.append((call, named)))
    settings = Settings(config=load_recipe("fast"))
    sglang_launch.serve(["folder", *words], settings)
    ((command, address), named) = given[0]
    asked = {"swaa": settings.to_dict()}
    own = ["--radix-cache-backend", "swaa", "--json-model-override-args", json.dumps(asked)]
    assert command[3:] == ["serve", "folder", *words, *flags, *own]
    assert address == Address(port=30_000)
    assert json.loads(named["environment"]["SWAA_SGLANG_REQUIRED"]) == settings.to_dict()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--json-model-override-args", "{}"], "cannot be combined with 'swaa serve'"),
        (["--radix-cache-backend=swaa"], "cannot be combined with 'swaa serve'"),
        (["--port", "0"], "--port 0: expected a number above 0"),
        (["--por", "81"], "--por: write the flag out: --port"),
    ],
)
def test_arguments_of_sglang_that_would_get_past_the_check(words, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        sglang_launch.serve(["folder", *words], Settings(config=load_recipe("fast")))


@pytest.mark.skipif(importlib.util.find_spec("sglang") is not None, reason="SGLang is installed")
def test_without_sglang(refusal):
    assert "pip install sglang==0.5.23" in refusal("serve", "folder", "--engine", "sglang")


OWN = {"window": 24, "sink_tokens": 4, "dense_tail": 8}


@pytest.mark.parametrize(
    ("carried", "words", "expected"),
    [
        (OWN, [], SWAAConfig(**OWN)),
        (OWN, ["--window", "32"], SWAAConfig(**{**OWN, "window": 32})),
        (OWN, ["--recipe", "fast"], load_recipe("fast")),
        (None, [], load_recipe("selected")),
    ],
    ids=["own", "own_and_a_knob", "recipe", "none"],
)
def test_the_recipe_of_the_checkpoint_comes_first(handed, tmp_path, carried, words, expected):
    values = {"model_type": "qwen3"} | ({} if carried is None else {"swaa": carried})
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert main(["serve", str(tmp_path), *words]) == 0
    assert handed[0][1] == Settings(config=expected)


def test_the_embedded_model_is_not_served(handed, refusal):
    assert refusal("serve", "smollm2") == (
        "swaa serve: smollm2 is a GGUF file, which the engines do not load; serve a folder or a hub"
        " name"
    )
    assert handed == []


def test_sglang_has_a_default_that_it_serves(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(sglang_launch, "check_installed", lambda: None)
    monkeypatch.setattr(sglang_launch, "serve", lambda *given: calls.append(given) or 0)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    assert main(["serve", str(tmp_path), "--engine", "sglang"]) == 0
    assert calls == [([str(tmp_path)], Settings(config=load_recipe("balanced")))]
    assert "recipe: balanced, the default" in capsys.readouterr().err


def test_a_config_file_that_says_null_asks_for_nothing(handed, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "swaa": None}))
    assert main(["serve", str(tmp_path)]) == 0
    assert handed[0][1] == Settings(config=load_recipe("selected"))


def test_a_wrapper_whose_text_model_carries_a_recipe(handed, tmp_path):
    values = {"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text", "swaa": OWN}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert main(["serve", str(tmp_path)]) == 0
    assert handed[0][1] == Settings(config=SWAAConfig(**OWN))


def test_the_config_file_that_vllm_is_told_to_read(handed, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "swaa": OWN}))
    assert main(["serve", "elsewhere", "--hf-config-path", str(tmp_path)]) == 0
    assert handed[0][1] == Settings(config=SWAAConfig(**OWN))


def test_publication_that_the_checkpoint_asks_for(handed, tmp_path, capsys):
    swaa = {"recipe": "fast", "publish_generated": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "swaa": swaa}))
    assert main(["serve", str(tmp_path)]) == 0
    assert handed[0][1] == Settings(config=load_recipe("fast"), publish_generated=True)
    assert "recipe: the checkpoint's own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["folder", "--recipe", "full"], "leaves every layer full"),
        (["folder", "--recipe", "unheard-of"], "unknown recipe"),
        (["/no/such/folder"], "no such file or folder: /no/such/folder"),
    ],
)
def test_mistakes_take_one_line(handed, refusal, words, reason):
    assert reason in refusal("serve", *words)
    assert not handed


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm(refusal):
    assert "pip install '.[vllm]'" in refusal("serve", "folder")


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ([], Address()),
        (["--port=81", "--host", "0.0.0.0"], Address(port=81)),
        (["--host", "::1", "--ssl_certfile", "c"], Address(host="::1", tls=True)),
        (["--uds", "socket"], Address(uds="socket")),
        (["--headless"], None),
        (["--config", "FILE"], Address(host="::1", port=8001)),
        (["--config", "FILE", "--port=9"], Address(host="::1", port=9)),
        (["--data-parallel-size-local", "0"], None),
    ],
)
def test_address_that_is_asked_whether_the_server_is_up(tmp_path, arguments, address):
    (tmp_path / "flags.yaml").write_text("port: 8001\nhost: '::1'\nheadless: false\n")
    words = [word.replace("FILE", str(tmp_path / "flags.yaml")) for word in arguments]
    assert find_address(["folder", *words]) == address


@pytest.mark.parametrize(
    ("words", "config", "reason"),
    [
        (["--additional-config={}"], "", "--additional-config cannot be combined"),
        (["--additional_config", "{}"], "", "--additional-config cannot be combined"),
        (["--additional-config.swaa.window", "9"], "", "--additional-config cannot be combined"),
        (["--config", "F"], "additional_config: {a: 1}", "--additional-config cannot be combined"),
        (["--config", "F"], "- port", "holds no flags; expected YAML such as"),
        (["--config", "F"], "a: b: c", "cannot be read: mapping values are not allowed"),
        (["--config", "none.yaml"], "", "none.yaml cannot be read: [Errno 2] No such file"),
        (["--port", "http"], "", "--port http: expected a number"),
        (["--port", "0"], "", "--port 0: expected a number above 0"),
        (["--por", "81"], "", "--por: write the flag out: --port"),
        (["--ssl-cert=c"], "", "--ssl-cert: write the flag out: --ssl-certfile"),
        (["--config=c.yaml"], "", "vLLM reads no file so; write --config c.yaml"),
    ],
)
def test_arguments_that_would_get_past_the_check(tmp_path, words, config, reason):
    (tmp_path / "F").write_text(config)
    words = [str(tmp_path / "F") if word == "F" else word for word in words]
    with pytest.raises(ValueError, match=re.escape(reason)):
        find_address(["folder", *words])


class Health(http.server.BaseHTTPRequestHandler):
    """Says that all is well, like vLLM."""

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_words):
        pass


class UnixServer(http.server.HTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self):
        self.socket.bind(self.server_address)


@contextlib.contextmanager
def listening(made):
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_health_over_tcp_past_any_proxy(monkeypatch):
    with listening(http.server.HTTPServer(("127.0.0.1", 0), Health)) as server:
        address = Address(port=server.server_port)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        assert address.is_taken()
        assert address.answers()
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            assert not Address(port=silent.getsockname()[1]).answers()
    assert not address.is_taken()
    assert not address.answers()


def test_health_over_a_socket_file(tmp_path):
    path = str(tmp_path / "s")
    assert not Address(uds=path).is_taken()
    with listening(UnixServer(path, Health)):
        assert Address(uds=path).is_taken()
        assert Address(uds=path).answers()
    assert not Address(uds=path).answers()  # the file of a server that has ended


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_health_over_tls_whoever_signed(tmp_path):
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=elsewhere"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.HTTPServer(("127.0.0.1", 0), Health)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with listening(server):
        assert Address(port=server.server_port, tls=True).answers()


def test_a_taken_address_is_refused():
    with listening(http.server.HTTPServer(("127.0.0.1", 0), Health)) as server:
        words = ["folder", "--port", str(server.server_port)]
        with pytest.raises(ValueError, match="is taken: something listens there already"):
            launch.serve(words, Settings(config=load_recipe("fast")))


@pytest.mark.parametrize(
    ("code", "asked", "expected"),
    [(0, True, 0), (0, False, 1), (-2, True, 130), (7, False, 7), (running.NOT_ACTIVE, False, 3)],
    ids=["asked_to_end", "by_itself", "by_a_signal", "failed", "not_active"],
)
def test_exit_codes_are_those_that_supervisors_read(monkeypatch, capsys, code, asked, expected):
    def watch(_server, _reports, _address, asked_to_end):
        asked_to_end.extend([0.0] * asked)
        return code

    monkeypatch.setattr(running.subprocess, "Popen", lambda *_, **__: None)
    monkeypatch.setattr(running.signal, "signal", lambda *_: None)
    monkeypatch.setattr(launch, "find_address", lambda _: None)
    monkeypatch.setattr(running, "_watch", watch)
    monkeypatch.setattr(running, "_end", lambda _: None)
    assert launch.serve(["folder"], Settings(config=load_recipe("fast"))) == expected
    assert ("the server ended by itself" in capsys.readouterr().err) == (expected == 1)
