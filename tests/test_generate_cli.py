import io
import json

import pytest

from swaa.cli import main
from swaa.cli.progress import ProgressBar, format_seconds

DOCUMENT = "It was the best of times, it was the worst of times. " * 8


@pytest.fixture
def words(checkpoint, tmp_path):
    (tmp_path / "doc.txt").write_text(DOCUMENT, encoding="utf-8")
    # fmt: off
    return [
        "generate", str(checkpoint), "--file", str(tmp_path / "doc.txt"), "--question", "Which?",
        "--max-new-tokens", "6", "--window", "64", "--chunk", "200", "--device", "cpu",
    ]
    # fmt: on


def test_says_what_is_active_answers_and_counts(capsys, words):
    assert main([*words, "--recipe", "fast"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("adapted 4 of 4 layers: window 64, 128 sinks, full decode")
    assert "prompt tokens  first token s  tokens/s  KV MiB  peak KV MiB" in captured.out
    assert captured.out.splitlines()[-1].split()[:3] == ["fast", "window=64", "432"]
    assert "fast window=64: prompt [########################] 100 %" in captured.err


def test_what_slides_nowhere_is_said(capsys, words):
    assert main([*words, "--recipe", "naive", "--window", "1k"]) == 0
    said = capsys.readouterr().err
    assert "naive window=1k: nothing slides: window 1024 covers the prompt of 432 token" in said
    assert main([*words, "--recipe", "naive"]) == 0
    assert "nothing slides" not in capsys.readouterr().err


def test_full_leaves_the_model_as_it_is(prints, words):
    without_window = [word for word in words if word not in ("--window", "64")]
    assert prints(*without_window, "--recipe", "full").startswith(
        "full attention, the model as it is"
    )


def test_compare_shows_both(prints, words):
    lines = prints(*words, "--recipe", "naive", "--compare", "full").splitlines()
    assert lines[0].startswith("naive window=64: adapted 4 of 4 layers")
    assert lines[1] == "full: full attention, the model as it is"
    assert lines[3].split() == ["naive", "window=64", "|", "full"]
    assert [line.split()[0] for line in lines[-3:-1]] == ["naive", "full"]
    said = "naive window=64: by arithmetic, saves a tenth of a prompt's FLOPs from "
    assert lines[-1].startswith(said)


def test_json_holds_both_runs(prints, words):
    result = json.loads(prints(*words, "--recipe", "naive", "--compare", "full", "--json"))
    assert result["model"] == "tiny"
    naive, full = result["runs"]
    assert naive["config"]["window"] == 64
    assert full["config"]["window"] is None
    assert naive["prompt_tokens"] == full["prompt_tokens"] == 432
    assert naive["kv_bytes"] < full["kv_bytes"]


def test_checkpoint_with_a_configuration_of_its_own(prints, words, checkpoint, tmp_path):
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["swaa"] = {"window": 32, "sink_tokens": 2}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = [str(tmp_path) if word == str(checkpoint) else word for word in words]
    assert "window 64, 3 sinks, backend" in prints(*words, "--sink-tokens", "3")


def test_missing_file(words, refusal):
    assert "no such file: nothing.txt" in refusal(*words, "--file", "nothing.txt")


def test_empty_document(words, tmp_path, refusal):
    (tmp_path / "doc.txt").write_text(" \n", encoding="utf-8")
    assert "the document is empty" in refusal(*words)


def test_document_that_is_not_text(words, tmp_path, refusal):
    (tmp_path / "doc.txt").write_bytes(b"\xff\xfe\xfd")
    assert "is not UTF-8 text" in refusal(*words)


def test_unknown_recipe(words, refusal):
    assert "unknown recipe 'fats'; did you mean 'fast'" in refusal(*words, "--recipe", "fats")
    assert "unknown recipe 'fats'" in refusal(*words, "--compare", "fats")


def test_prompt_beyond_the_trained_context(words, tmp_path, refusal):
    (tmp_path / "doc.txt").write_text(DOCUMENT * 4, encoding="utf-8")
    assert "tiny was trained to 1,024: shorten the document" in refusal(*words)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--chunk", "-3"], "--chunk -3: expected at least 0 tokens"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: expected at least 1 tokens"),
        (["--question", " "], "--question is empty"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_mistakes_that_show_before_a_model_is_loaded(words, more, reason, refusal):
    assert reason in refusal(*words, *more)


def test_backend_of_the_recipe_compared_with(prints, words):
    without_window = [word for word in words if word not in ("--window", "64")]
    more = ["--recipe", "full", "--compare", "fast", "--backend", "reference"]
    assert "backend reference" in prints(*without_window, *more)


def test_missing_model(words, refusal):
    assert "no such file or folder: ./none" in refusal(words[0], "./none", *words[2:])


def test_backend_without_a_sliding_layer(words, refusal):
    more = ("--window", "none", "--backend", "sdpa", "--recipe", "full")
    assert "--backend would do nothing" in refusal(*words, *more)


def test_model_is_restored_after_a_failure(capsys, words, monkeypatch):
    def fail(*_args, **_options):
        raise ValueError("out of luck")

    monkeypatch.setattr("swaa.generation.generate_answer", fail)
    assert main(words) == 2
    assert "out of luck" in capsys.readouterr().err


def test_bar_on_a_terminal_redraws_and_leaves_a_clean_line():
    stream = io.StringIO()
    stream.isatty = lambda: True
    with ProgressBar(4, "reading", stream=stream) as bar:
        bar.update(2, "half-way")
    lines = stream.getvalue().split("\r")
    assert lines[1].startswith("reading [........................] 0 %")
    assert lines[2].startswith("half-way [############............] 50 %, 00:00 left")
    assert lines[3].strip() == ""
    assert lines[4] == ""


def test_a_line_is_said_above_the_bar():
    stream = io.StringIO()
    stream.isatty = lambda: True
    with ProgressBar(4, "reading", stream=stream) as bar:
        bar.say("two files")
        bar.update(2)
    lines = stream.getvalue().split("\r")
    assert lines[2].strip() == ""
    assert lines[3] == "two files\n"
    assert lines[-3].startswith("reading [############............] 50 %")


def test_a_log_gets_a_line_for_every_tenth():
    stream = io.StringIO()
    with ProgressBar(1.0, "reading", stream=stream) as bar:
        for step in range(101):
            bar.update(step / 100)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("reading [##......................] 10 %, ")
    assert lines[-1].startswith("reading [########################] 100 %")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (125, "2 min 05 s")])
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text
