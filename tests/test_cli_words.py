"""Numbers and names as people type them, and one name for where things are written."""

import argparse
import io
import types

import pytest

from swaa.cli import VERBS, Parser
from swaa.cli.generate import read_document
from swaa.cli.numbers import dtype_name, whole_number
from swaa.cli.options import add_config_options, config_from, whole_numbers

WRITERS = {
    "demo": [],
    "eval": ["MODEL"],
    "distill": ["MODEL", "--data", "D"],
    "train": ["MODEL", "--data", "D"],
    "tune": ["MODEL", "--data", "D"],
    "report": [],
    "bench kernels": [],
    "bench generate": ["MODEL"],
    "bench serve": ["MODEL"],
    "bench tune-kernels": [],
}


def parsed(verb, *words):
    import importlib

    parser = Parser(prog="swaa")
    module = importlib.import_module(f"swaa.cli.{verb.split()[0]}")
    module.register(parser.add_subparsers())
    return parser.parse_args([*verb.split(), *words])


@pytest.mark.parametrize(
    ("text", "value"),
    [("4k", 4096), ("32K", 32_768), ("1m", 1_048_576), ("32_768", 32_768), ("-1", -1), (" 7 ", 7)],
)
def test_numbers_may_end_in_k(text, value):
    assert whole_number(text) == value


@pytest.mark.parametrize("text", ["", "k", "4.5k", "4kk", "1e3", "4 k", "_1", "\u0664"])
def test_other_words_are_no_numbers(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a whole number such as 4096"):
        whole_number(text)


def test_every_flag_that_takes_a_number_takes_it():
    assert parsed("plan", "m", "--prompt-length", "32k").prompt_length == 32_768
    assert parsed("bench generate", "m", "--new-tokens", "128").new_tokens == 128
    assert whole_numbers("4k,8192", "--lengths") == (4096, 8192)
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    args = parser.parse_args(["--recipe", "fast", "--window", "4k", "--dense-tail", "1k"])
    assert (config_from(args).window, config_from(args).dense_tail) == (4096, 1024)


def test_types_have_short_names():
    assert [dtype_name(name) for name in ("bf16", "FP16", "float32", "auto", "fp8")] == [
        *("bfloat16", "float16", "float32", "auto", "fp8")
    ]
    assert parsed("generate", "m", "--file", "f", "--question", "q", "--dtype", "bf16").dtype == (
        "bfloat16"
    )


@pytest.mark.parametrize("verb", WRITERS)
def test_every_verb_that_writes_takes_output(verb):
    values = [vars(parsed(verb, *WRITERS[verb], flag, "there")) for flag in ("-o", "--output")]
    assert all("there" in found.values() for found in values)
    assert values[0] == values[1]


def test_no_other_verb_writes():
    assert set(VERBS) - {verb.split()[0] for verb in WRITERS} == {
        *("generate", "chat", "plan", "serve", "recipes", "env")
    }


def test_a_document_comes_from_standard_input(monkeypatch):
    def stdin(data):
        monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
        return read_document("-")

    assert stdin(b"one\r\ntwo") == "one\ntwo"
    with pytest.raises(ValueError, match="the document is empty: stdin"):
        stdin(b" ")
    with pytest.raises(ValueError, match="stdin is not UTF-8 text"):
        stdin(b"\xff")
