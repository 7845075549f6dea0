import errno
import json
import os
import subprocess
import sys

import pytest

from swaa import files as samples_file
from swaa.config import SWAAConfig
from swaa.evaluation.run import execute, find
from swaa.evaluation.summary import summarize
from swaa.files import SamplesFile
from tests.documents import ROOT
from tests.evaluation.fakes import fake_engine, make_run, make_samples


@pytest.fixture
def run(prompt):
    return make_run(prompt)


@pytest.fixture
def samples(run):
    return make_samples(run)


class _StopError(Exception):
    pass


def _stop_after(count):
    def progress(done):
        if done == count:
            raise _StopError

    return progress


def test_a_run_leaves_a_result_and_every_sample(run, samples, tmp_path):
    seen = []
    outcome = execute(run, samples, fake_engine(samples), folder=tmp_path, progress=seen.append)
    assert seen == list(range(11))
    assert outcome.result.provenance.model_revision == "test"
    assert outcome.result.provenance.data == "needle"
    assert outcome.result.config["swaa"]["window"] == 512
    assert [sample["id"] for sample in outcome.samples] == [sample.id for sample in samples]
    lines = outcome.path.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(outcome.samples)
    assert {"id", "prompt", "output", "score", "first_token_s"} <= set(outcome.samples[0])
    assert sorted(path.suffix for path in outcome.path.parent.iterdir()) == [".json", ".jsonl"]
    again = find(run, folder=tmp_path)
    assert (again.result, again.samples) == (outcome.result, outcome.samples)


def test_rows_say_where_the_needle_lay(run, samples, tmp_path):
    rows = execute(run, samples, fake_engine(samples), folder=tmp_path).result.rows
    everything, *parts = rows
    assert everything["place"] == "all"
    assert everything["samples"] == 10 == sum(part["samples"] for part in parts)
    assert everything["right"] == sum(part["right"] for part in parts)
    assert {part["place"] for part in parts} <= {"sinks", "beyond", "window"}
    assert everything["low"] < everything["accuracy"] < everything["high"]
    assert everything["truncated"] == 10 - everything["right"]


def test_an_interrupted_run_asks_only_for_what_is_missing(run, samples, tmp_path):
    with pytest.raises(_StopError):
        execute(run, samples, fake_engine(samples), folder=tmp_path, progress=_stop_after(4))
    assert find(run, folder=tmp_path) is None
    engine = fake_engine(samples)
    outcome = execute(run, samples, engine, folder=tmp_path)
    assert len(engine.asked) == 6
    assert outcome.resumed == 4
    whole = execute(run, samples, fake_engine(samples), folder=tmp_path / "other")
    assert outcome.samples == whole.samples
    assert outcome.result.rows == whole.result.rows


def test_batches_keep_their_members_when_resumed(run, samples, tmp_path):
    whole = fake_engine(samples)
    execute(run, samples, whole, folder=tmp_path / "whole", batch_size=4)
    first = fake_engine(samples)
    with pytest.raises(_StopError):
        execute(run, samples, first, folder=tmp_path, batch_size=4, progress=_stop_after(6))
    rest = fake_engine(samples)
    outcome = execute(run, samples, rest, folder=tmp_path, batch_size=4)
    assert rest.asked == whole.asked[1:]
    assert len({sample["id"] for sample in outcome.samples}) == len(outcome.samples) == 10


def test_a_torn_last_line_is_dropped_and_done_again(run, samples, tmp_path):
    with pytest.raises(_StopError):
        execute(run, samples, fake_engine(samples), folder=tmp_path, progress=_stop_after(4))
    (path,) = (tmp_path / "eval").glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    assert execute(run, samples, fake_engine(samples), folder=tmp_path).resumed == 3


def test_a_result_half_written_is_cleared_away(run, samples, tmp_path):
    with pytest.raises(_StopError):
        execute(run, samples, fake_engine(samples), folder=tmp_path, progress=_stop_after(4))
    (path,) = (tmp_path / "eval").glob("*.jsonl")
    for suffix in (".json", ".jsonl"):
        path.with_name(f".{path.stem}{suffix}.ab12cd34").write_text("half")
    other = path.with_name(".other.json.ab12cd34")
    other.write_text("of a run under way")
    execute(run, samples, fake_engine(samples), folder=tmp_path)
    hidden = [item for item in path.parent.iterdir() if item.name.startswith(".")]
    assert hidden == [other]


def test_a_spoilt_line_is_named(run, samples, tmp_path):
    with pytest.raises(_StopError):
        execute(run, samples, fake_engine(samples), folder=tmp_path, progress=_stop_after(4))
    (path,) = (tmp_path / "eval").glob("*.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{", *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=r"jsonl, line 2 is not a sample of a run; delete that"):
        execute(run, samples, fake_engine(samples), folder=tmp_path)


def test_samples_of_other_prompts_are_not_mixed_in(run, samples, tmp_path):
    with pytest.raises(_StopError):
        execute(run, samples, fake_engine(samples), folder=tmp_path, progress=_stop_after(4))
    (path,) = (tmp_path / "eval").glob("*.jsonl")
    path.write_text(path.read_text().replace('"prompt": "', '"prompt": "0'))
    with pytest.raises(ValueError, match="was made from another prompt; move the file away"):
        execute(run, samples, fake_engine(samples), folder=tmp_path)


def test_two_processes_never_write_one_run(run, samples, tmp_path):
    path = tmp_path / "run.jsonl"
    with (
        SamplesFile(path),
        pytest.raises(ValueError, match="another process is writing"),
        SamplesFile(path),
    ):
        pass
    with SamplesFile(path) as file:
        assert file.samples == []
    assert [item.name for item in tmp_path.iterdir()] == ["run.jsonl"]


def test_a_full_disk_keeps_what_was_done(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    write = os.write

    def half(descriptor, data):
        if len(data) > 40:
            write(descriptor, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(samples_file.os, "write", half)
    with SamplesFile(path) as file:
        file.append({"id": "a"})
        with pytest.raises(OSError, match=r"cannot write .*run.jsonl.*make room and run the same"):
            file.append({"id": "b", "output": "x" * 100})
    with SamplesFile(path) as file:
        assert file.samples == [{"id": "a"}]


def test_what_tells_runs_apart(prompt, tmp_path):
    run = make_run(prompt)
    others = [
        make_run(prompt, setting="other"),
        make_run(prompt, config=SWAAConfig(window=256)),
        make_run(prompt, count=11),
        make_run(prompt, model_revision="new"),
        make_run(prompt, length=1501),
        make_run(prompt, engine={"engine": "fake", "dtype": "bfloat16"}),
    ]
    execute(run, make_samples(run), fake_engine(make_samples(run)), folder=tmp_path)
    assert find(run, folder=tmp_path) is not None
    assert all(find(other, folder=tmp_path) is None for other in others)


@pytest.mark.parametrize(
    ("model", "setting", "name"),
    [
        ("org/Qwen3-4B", "fast", "qwen3-4b-fast-needle-1500"),
        ("tiny", "my/settings.json#0", "tiny-settings.json-0-needle-1500"),
    ],
)
def test_names_of_result_files(prompt, model, setting, name):
    assert make_run(prompt, model=model, setting=setting).name == name


def test_killing_a_run_20_times_changes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluation.killed", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kills"] == 20
    assert any(0 < count < 40 for count in said["survived"])
    files = {
        folder: {path.name: path for path in (tmp_path / folder / "eval").iterdir()}
        for folder in ("whole", "killed")
    }
    assert files["whole"].keys() == files["killed"].keys()
    for name, whole in files["whole"].items():
        killed = files["killed"][name]
        if whole.suffix == ".jsonl":
            assert killed.read_bytes() == whole.read_bytes()
        else:
            ours, theirs = (json.loads(path.read_text()) for path in (killed, whole))
            assert (ours["config"], ours["rows"]) == (theirs["config"], theirs["rows"])


def test_an_unjudged_answer_is_not_right():
    sample = {
        "length": 10, "needles": [], "score": None, "answered": True, "first_token_s": None,
        "truncated": False,
    }  # fmt: skip
    (row,) = summarize([sample, sample | {"score": 1.0}], SWAAConfig(window=None))
    assert (row["right"], row["unjudged"], row["first_token_s"]) == (1, 1, None)
