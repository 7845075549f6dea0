"""What is written down holds no secrets, whatever they are called and wherever they stand."""

import json

import pytest

from swaa.redaction import (
    HIDDEN,
    arguments_without_secrets,
    is_secret_name,
    is_secret_value,
    without_secrets,
)


@pytest.mark.parametrize(
    "name",
    [
        "hf-token",
        "api_key",
        "apiKey",
        "aws_secret_access_key",
        "ssl-keyfile-password",
        "Authorization",
    ],
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "max-num-batched-tokens",
        "long-prefill-token-threshold",
        "tokenizer",
        "key-variable",
        "",
        "_",
    ],
)
def test_names_of_other_things(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text",
    [
        "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
        "Bearer abcdefgh12345678ijkl",
        "sk-proj-abc123def456ghi789",
        "https://me:hunter2@example.org/v1",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
    ],
)
def test_values_that_are_secrets(text):
    assert is_secret_value(text)
    assert without_secrets({"note": [text]}) == {"note": [HIDDEN]}


@pytest.mark.parametrize(
    "text",
    ["hf_transformers_engine", "task-specific-long-name-1", "http://127.0.0.1:8000/v1", "fast"],
)
def test_values_that_are_none(text):
    assert not is_secret_value(text)


def test_whatever_follows_a_secret_flag_is_hidden():
    given = ["--api-key", "one", "two", "--dtype", "auto", "--hf_token=three", "--api-k", "four"]
    assert arguments_without_secrets(given) == [
        *("--api-key", HIDDEN, HIDDEN, "--dtype", "auto", f"--hf_token={HIDDEN}"),
        *("--api-k", HIDDEN),
    ]
    assert arguments_without_secrets(["--hf-token"]) == ["--hf-token"]
    assert arguments_without_secrets(["-O.api_key=x", "-O.level=3"]) == [
        *(f"-O.api_key={HIDDEN}", "-O.level=3")
    ]
    assert arguments_without_secrets(["--api-key", "-a=b"]) == ["--api-key", HIDDEN]


def test_json_among_arguments_is_looked_into():
    given = {"aws": {"secret_access_key": "abc", "region": "eu"}, "max_token": 5}
    (shown,) = arguments_without_secrets([json.dumps(given)])
    assert json.loads(shown) == {
        "aws": {"secret_access_key": HIDDEN, "region": "eu"},
        "max_token": 5,
    }
    harmless = '{"block_size":16}'
    assert arguments_without_secrets(["--x", harmless, "{broken"]) == ["--x", harmless, "{broken"]
