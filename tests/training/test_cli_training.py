"""`swaa distill` and `swaa train` from the command line."""

import json

import pytest
import torch

from tests.training.conftest import conversation, write_lines

QUESTION = {"context": "a" * 40, "question": "b?", "answers": "zzz", "max_new_tokens": 4}


def test_from_questions_to_a_checkpoint(checkpoint, tmp_path, prints, refusal):
    data = write_lines(tmp_path / "q.jsonl", [QUESTION])
    out = tmp_path / "sft.jsonl"
    words = ("distill", checkpoint, "--data", data, "--out", out, "--device", "cpu", "--json")
    words += ("--answers", 2, "--batch-size", 2)
    assert json.loads(prints(*words))["answers"] == 2
    answers = tmp_path / "sft.answers.jsonl"
    drawn = answers.read_text()
    assert len(drawn.splitlines()) == 2
    prints(*words)
    assert answers.read_text() == drawn

    write_lines(out, [conversation("a" * 40, "zzz")] * 4)
    trained = tmp_path / "out"
    words = ("train", checkpoint, "--data", out, "--out", trained, "--device", "cpu", "--json")
    words += ("--recipe", "naive", "--window", 16, "--max-length", 99, "--accumulate", 2)
    values = json.loads(prints(*words, "--objective", "kl"))
    assert values["steps"] == 2
    assert (trained / "loss.png").exists() == (values["plot"] is not None)
    config = json.loads((trained / "merged" / "config.json").read_text())
    assert config["swaa"]["window"] == 16
    assert refusal(*words).endswith("out is finished; choose another folder with --out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "bad"], "bad.jsonl: 1 of 2 lines cannot be trained on: line 2: turn 2 is an"),
        (["--data", "good", "--rank", "0"], "rank is 0; expected a whole number of at least 1"),
        (["--data", "good", "--tracker", "trackio"], "--tracker trackio needs trackio; run: pip"),
        (["--data", "good", "--resume"], "holds no checkpoint to resume from; train without"),
        (["--data", "none"], "no such file: "),
        (["--data", "good", "--dtype", "int8"], "--dtype int8: expected auto, float32, bfloat16"),
    ],
)
def test_a_mistake_is_one_line(checkpoint, tmp_path, words, message, refusal):
    good, empty = conversation("a", "b"), conversation("a", " ")
    write_lines(tmp_path / "good.jsonl", [good])
    write_lines(tmp_path / "bad.jsonl", [good, empty])
    words = [tmp_path / f"{w}.jsonl" if w in ("good", "bad", "none") else w for w in words]
    words += ["--window", "16", "--out", tmp_path / "out", "--device", "cpu"]
    assert message in refusal("train", checkpoint, *words)
    assert not (tmp_path / "out" / "adapter").exists()


@pytest.mark.parametrize(
    ("lines", "more", "message"),
    [
        (None, [], "no such file: "),
        ([], [], "d.jsonl holds no conversation to train on"),
        ([{"messages": [{"role": "user", "content": "a"}]}], [], "line 1: no assistant turn"),
        ([conversation("a", "b"), {"text": "a"}], [], "line 2: expected an object with 'messages'"),
        ([conversation("a", " ")], ["--skip-bad"], "d.jsonl holds no conversation to train on"),
        ([conversation("a", "b")], ["--resume"], "holds no checkpoint to resume from"),
        ([conversation("a", "b")], ["--recipe", "full"], "leaves every layer full: there is"),
        ([conversation("a", "b")], ["--window", "none"], "leaves every layer full: there is"),
        ([conversation("a", "b")], ["--epochs", "inf"], "epochs is inf; expected a finite number"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_no_model_is_loaded_for_data_or_folders_that_are_wrong(
    tmp_path, lines, more, message, refusal
):
    if lines is not None:
        write_lines(tmp_path / "d.jsonl", lines)
    words = ("train", "m", "--data", tmp_path / "d.jsonl", "--out", tmp_path / "out", *more)
    assert message in refusal(*words)


def test_no_model_is_loaded_for_a_folder_that_holds_something_else(monkeypatch, tmp_path, refusal):
    def load(*_, **__):
        raise ValueError("loads the model")

    monkeypatch.setattr("swaa.models.load_model", load)
    data = write_lines(tmp_path / "d.jsonl", [conversation("a", "b")])
    out = tmp_path / "out"
    words = ("train", "m", "--data", data, "--device", "cpu", "--out")
    (out / "checkpoints").mkdir(parents=True)
    for folder in (out, tmp_path / "new"):  # what a process that died early leaves, and nothing
        assert refusal(*words, folder) == "swaa train: loads the model"
    for name in ("a", "b", "c", "d"):
        (out / name).write_text("mine")
    assert refusal(*words, out).endswith(
        "out holds other files (a, b, c, ...) and no training; name a new or empty folder by --out"
    )
    message = "a is a file; name a new or empty folder by --out"
    assert refusal(*words, out / "a").endswith(message)


def test_skipped_lines_are_named(checkpoint, tmp_path, prints):
    data = write_lines(tmp_path / "d.jsonl", [conversation("a" * 30, "b"), conversation("a", "")])
    words = ("train", checkpoint, "--data", data, "--out", tmp_path / "out", "--device", "cpu")
    printed = prints(*words, "--window", 16, "--skip-bad", "--no-merge")
    assert "skipped line 2: turn 2 is an empty answer" in printed
    assert "merged" not in printed


def test_missing_packages_are_named(monkeypatch, tmp_path, refusal):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ("train", "smollm2", "--data", "d", "--out", tmp_path / "o")
    assert refusal(*words) == (
        "swaa train: training needs trl; run: pip install '.[train]' in your clone of swaa"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--endpoint", "http://x/v1", "--batch-size", 2], "--batch-size does nothing with"),
        (["--concurrency", 2], "--concurrency does nothing without --endpoint"),
        (["--temperature", 0], "temperature is 0.0; expected more than 0 to draw"),
        (["--judge-model", "m"], "--judge-endpoint and --judge-model go together"),
        (["--max-length", 5], "holds no question of at most 5 tokens"),
    ],
)
def test_distill_checks_its_flags(checkpoint, tmp_path, words, message, refusal):
    data = write_lines(tmp_path / "q.jsonl", [QUESTION])
    out = tmp_path / "o.jsonl"
    assert message in refusal("distill", checkpoint, "--data", data, "--out", out, *words)
    assert not out.exists()


def test_distill_says_that_a_file_is_empty(checkpoint, tmp_path, refusal):
    data = write_lines(tmp_path / "q.jsonl", [])
    words = ("distill", checkpoint, "--data", data, "--out", tmp_path / "o.jsonl")
    assert refusal(*words, "--device", "cpu") == f"swaa distill: {data} holds no question"


def test_help_says_which_dtype_is_taken(prints, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert "auto, float32 on a CPU and bfloat16 elsewhere (" in prints("train", "--help")


@pytest.mark.usefixtures("no_model")
def test_distill_overwrites_no_file_but_its_own(monkeypatch, tmp_path, refusal):
    monkeypatch.chdir(tmp_path)
    data = write_lines(tmp_path / "q.jsonl", [QUESTION])
    (tmp_path / "soft.jsonl").symlink_to(data)
    (tmp_path / "hard.jsonl").hardlink_to(data)
    (tmp_path / "x.answers.jsonl").hardlink_to(data)
    (tmp_path / "y.judge.jsonl").symlink_to(data)
    (tmp_path / "mine.jsonl").write_text("mine")
    lost = "holds the questions (--data) and would be overwritten; choose another --out"
    cases = {
        "q.jsonl": lost,
        str(data): lost,
        "soft.jsonl": lost,
        "hard.jsonl": lost,
        "x.jsonl": f"x.answers.jsonl {lost}",
        "y.jsonl": f"y.judge.jsonl {lost}",
        "mine.jsonl": "exists and was not written by 'swaa distill': mine.answers.jsonl is not",
        "s.json": "--out s.json: expected a file that ends in .jsonl",
    }
    for out, message in cases.items():
        assert message in refusal("distill", "m", "--data", "q.jsonl", "--out", out), out
    assert json.loads(data.read_text()) == QUESTION
    assert (tmp_path / "mine.jsonl").read_text() == "mine"


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    from swaa.cli.train import _device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert _device("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert _device("auto") == "cuda:3"
    assert _device("cpu") == "cpu"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert _device("auto") == "cpu"
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    assert _device("auto") == "cpu"
