import importlib.util
import json

import pytest

from swaa.cli import main
from swaa.integrations.vllm import launch


@pytest.fixture
def handed(monkeypatch):
    """What `swaa serve` hands to vLLM."""
    words = []

    def serve(arguments):
        words.extend(arguments)
        return 0

    monkeypatch.setattr(launch, "serve", serve)
    return words


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
    *rest, flag, value = handed
    assert rest == ["folder", "--port", "9000", "--uvloop"]
    assert flag == "--additional-config"
    wanted = json.loads(value)["swaa"]
    assert wanted["recipe"]["window"] == 512
    assert wanted["publish_generated"] is False


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--recipe", "full"], "leaves every layer full"),
        (["--recipe", "unheard-of"], "unknown recipe"),
        (["--additional-config={}"], "--additional-config cannot be combined"),
    ],
)
def test_mistakes_take_one_line(handed, capsys, words, reason):
    assert main(["serve", "folder", *words]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not handed


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm(capsys):
    assert main(["serve", "folder"]) == 2
    assert "pip install 'swaa[vllm]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ([], "http://127.0.0.1:8000/health"),
        (["--port=81", "--host", "0.0.0.0"], "http://127.0.0.1:81/health"),
        (["--host", "::1", "--ssl-certfile", "c"], "https://[::1]:8000/health"),
        (["--uds", "socket"], None),
    ],
)
def test_address_that_is_asked_whether_the_server_is_up(arguments, address):
    assert launch._health_address(["folder", *arguments]) == address
