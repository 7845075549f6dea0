"""What a folder holds decides what a command does in it; nothing of value is overwritten."""

import errno
import json
import shutil
import subprocess
import sys

import pytest

from swaa import cli
from swaa.training import run
from swaa.training.curve import save_curve
from swaa.training.folder import hold, left_to_do, whole_folder
from tests.training.conftest import CONFIG

FLAGS = ("--window", 16, "--sink-tokens", 2, "--full-layers", 1, "--full-decode", "0,2")
FLAGS += ("--dense-tail", 4, "--max-length", 400, "--accumulate", 4, "--device", "cpu")
RECORD = {"model": "m", "settings": {"rank": 16}}


@pytest.fixture
def command(capsys, checkpoint, data, tmp_path):
    """Runs `swaa train`; gives its code and its last line on stderr."""

    def call(*more):
        words = ("train", checkpoint, "--data", data, "--out", tmp_path / "out", *FLAGS, *more)
        code = cli.main([str(word) for word in words])
        return code, capsys.readouterr().err.strip().splitlines()[-1]

    return call


def _fails(monkeypatch, name, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(run, name, fail)


def test_one_that_left_nothing_is_begun_anew(command, monkeypatch, tmp_path):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        _fails(patch, "_do_steps", ValueError("died"))
        assert command("--no-merge") == (2, "swaa train: died")
    assert "steps" not in json.loads((out / "training.json").read_text())
    code, error = command("--no-merge", "--resume")
    assert code == 2
    assert "holds no checkpoint to resume from; train without --resume" in error
    assert command("--no-merge")[0] == 0
    assert not (out / ".lock").exists()
    before = (out / "training.json").read_bytes()
    for more in ((), ("--resume",)):
        code, error = command("--no-merge", *more)
        assert (code, error) == (
            2,
            f"swaa train: the training in {out} is finished; choose another folder with --out",
        )
    assert (out / "training.json").read_bytes() == before


def test_one_that_died_while_merging_is_merged(command, monkeypatch, tmp_path):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        _fails(patch, "save_merged", ValueError("died"))
        assert command() == (2, "swaa train: died")
    assert json.loads((out / "training.json").read_text())["steps"] == 2
    whole = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    code, error = command()
    assert code == 2
    assert error.endswith(
        "is finished, but not merged; use --resume to merge it, or choose another folder with --out"
    )
    code, error = command("--resume", "--rank", 8)
    assert (code, "was started with other settings; resume it with the" in error) == (2, True)

    # As earlier versions left it: merged half written in place, and nothing of the steps.
    (out / "merged").mkdir()
    (out / "merged" / "config.json").write_text("{")
    record = json.loads((out / "training.json").read_text())
    asked = {key: record[key] for key in ("model", "swaa", "data", "data_revision", "settings")}
    (out / "training.json").write_text(json.dumps(asked))
    _fails(monkeypatch, "SlidingTrainer", AssertionError("trains again"))
    assert command("--resume")[0] == 0
    assert json.loads((out / "merged" / "config.json").read_text())["swaa"] == CONFIG.to_dict()
    assert (out / "merged" / "model.safetensors").exists()
    assert json.loads((out / "training.json").read_text()) == {**asked, "steps": 2}
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == whole
    assert not list(out.glob("*.partial"))
    code, error = command("--resume")
    assert (code, error.endswith("is finished; choose another folder with --out")) == (2, True)


def test_training_again_in_python_merges_too(load, data, tmp_path):
    settings = run.TrainingSettings(max_steps=1, max_length=400)
    options = {"name": "m", "data": data, "out": tmp_path / "out", "settings": settings}
    first = run.train(load(), CONFIG, reload=None, **options)
    again = run.train(load(), CONFIG, reload=load, resume=True, **options)
    assert (again.rows, again.examples) == (first.rows, 8)
    assert again.seconds == pytest.approx(first.seconds, abs=1e-3)
    assert (tmp_path / "out" / "merged" / "swaa.json").exists()
    assert "trained already under window 16" in again.summary


def _half(folder, name):
    with whole_folder(folder) as beside:
        (beside / name).write_text("a")
        raise OSError("full")


def test_half_a_folder_has_another_name(tmp_path):
    folder = tmp_path / "merged"
    for name in ("a", "b"):
        with pytest.raises(OSError, match="full"):
            _half(folder, name)
        assert not folder.exists()
        assert [path.name for path in (tmp_path / "merged.partial").iterdir()] == [name]
    folder.mkdir()
    (folder / "a").write_text("half, of an earlier version")
    with whole_folder(folder) as beside:
        (beside / "b").write_text("b")
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("loss.jsonl", lambda out, step: save_curve([{"step": step}], out / "loss.jsonl")),
        ("training.json", lambda out, step: run._write_record(out, {"steps": step})),
    ],
)
def test_a_full_disk_leaves_the_file_before(monkeypatch, tmp_path, name, write):
    write(tmp_path, 1)
    before = (tmp_path / name).read_text()
    monkeypatch.setattr("os.fsync", _full)
    with pytest.raises(OSError, match=f"cannot write .*{name}: no room; make room"):
        write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == before


def _full(_descriptor):
    raise OSError(28, "no room")


HOLD = """
import sys, time
from pathlib import Path
from swaa.training.curve import save_curve
from swaa.training.folder import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_trainings_exclude_each_other(command, data, monkeypatch, tmp_path):
    out = tmp_path / "out"
    other = subprocess.Popen([sys.executable, "-c", HOLD, out], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        monkeypatch.setattr("swaa.models.load_model", lambda *_, **__: pytest.fail("loads a model"))
        message = f"another process is training in {out}; wait for it, or name another folder by"
        assert command() == (2, f"swaa train: {message} --out")
        with monkeypatch.context() as launched:  # the other is the first process of this training
            for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
                launched.setenv(name, value)
            assert run.check("m", CONFIG, data, out, run.TrainingSettings()) == "training"
            with hold(out):
                pass
            assert (out / ".lock").exists()
    finally:
        other.kill()
        other.communicate()
    with hold(out):  # a process that was killed holds nothing
        pass
    assert not (out / ".lock").exists()


def test_a_file_system_without_locks_will_do(monkeypatch, tmp_path):
    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with hold(tmp_path):
        assert left_to_do(tmp_path, RECORD, resume=False, merges=True) == "training"
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_another_training_that_left_nothing_is_replaced(tmp_path):
    (tmp_path / "training.json").write_text(json.dumps({**RECORD, "model": "other"}))
    (tmp_path / "checkpoints" / "checkpoint-3").mkdir(parents=True)  # killed while it was written
    assert left_to_do(tmp_path, RECORD, resume=False, merges=True) == "training"
    shutil.rmtree(tmp_path / "checkpoints")
    assert left_to_do(tmp_path, RECORD, resume=False, merges=True) == "training"
