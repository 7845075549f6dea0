"""Two processes on the CPU (gloo) leave the files of one, whatever happens on the way."""

import json
import os
import subprocess
import sys

import pytest

from swaa import cli
from tests.documents import ROOT
from tests.launched import launch

FLAGS = (
    *("--recipes", "full,fast", "--window", "64", "--sink-tokens", "8", "--dense-tail", "8"),
    *("--tasks", "needle,perplexity", "--lengths", "600", "--samples", "9", "--batch-size", "2"),
)
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def _eval(checkpoint, folder, *, count=2, fault=None):
    """Run it in a folder; how it ended."""
    folder.mkdir(exist_ok=True)
    words = ["eval", str(checkpoint), *FLAGS]
    if fault is None:
        return launch("swaa.cli", words, count=count, folder=folder)
    return launch("tests.evaluation.faulty", words, count=count, folder=folder, FAULT=fault)


def _launched(checkpoint, folder):
    """Run it in two processes of PyTorch's own launcher."""
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }
    return subprocess.run(
        [sys.executable, *LAUNCHER, "-m", "swaa", "eval", str(checkpoint), *FLAGS],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _files(folder):
    """What the runs left, times and commits aside."""
    left = {}
    for path in sorted((folder / "results" / "eval").iterdir()):
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            left[path.name] = [{**line, "first_token_s": None} for line in lines]
            continue
        result = json.loads(path.read_text())
        for name in ("seconds", "created", "commit", "dirty"):
            del result["provenance"][name]
        for row in result["rows"]:
            row.pop("first_token_s", None)
        left[path.name] = result
    return left


def _table(done):
    """The words of what was printed, the column of times aside."""
    lines = [line.split() for line in done.stdout.splitlines()]
    return [words[:-1] if words[:1] == ["needle"] else words for words in lines]


def _samples(folder):
    return sum(path.read_text().count("\n") for path in folder.rglob("*.jsonl"))


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    done = _eval(checkpoint, folder, count=1)
    assert done.codes == [0], done.stderr
    return folder, done


@pytest.mark.slow
def test_two_processes_leave_the_files_of_one(alone, checkpoint, tmp_path):
    folder, whole = alone
    done = _launched(checkpoint, tmp_path)
    assert done.returncode == 0, done.stderr
    assert _files(tmp_path) == _files(folder)
    assert len(_files(tmp_path)) == 8
    assert _table(done) == _table(whole)


@pytest.mark.slow
def test_whichever_process_fails_the_same_command_goes_on(alone, checkpoint, tmp_path):
    # Nine prompts in batches of two: the first round takes four, one process each two.
    for fault in ("raise:1:2", "kill:1:1", "kill:0:1"):
        failed = _eval(checkpoint, tmp_path, fault=fault)
        assert any(failed.codes), fault
        assert failed.stdout == ""
        assert _samples(tmp_path) == 4, fault
        said = [line for line in failed.stderr.splitlines() if line.startswith("swaa eval: ")]
        # Of a process that was killed, a launcher speaks.
        if fault.startswith("raise"):
            assert said == ["swaa eval: process 1 of 2: no more"], failed.stderr
        else:
            assert all("is gone; run the same command again" in line for line in said)
            assert len(said) <= 1
        assert not list(tmp_path.rglob("*.json"))
    done = _eval(checkpoint, tmp_path)
    assert done.codes == [0, 0], done.stderr
    assert _files(tmp_path) == _files(alone[0])
    assert _table(done) == _table(alone[1])


@pytest.mark.parametrize(
    ("words", "setting", "message"),
    [
        (("--device", "cuda:1"), {}, "--device goes with one process, and each of several has"),
        (("--device-map", "auto"), {}, "--device-map goes with one process"),
        (("--endpoint", "http://127.0.0.1:9/v1"), {}, "--endpoint is asked by one process"),
        ((), {"ACCELERATE_USE_FSDP": "true"}, "accelerate launch was told to use FSDP, which"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, (tuple, dict)) else "",
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_several_processes_cannot_do(monkeypatch, capsys, words, setting, message, rank):
    launched = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
    for name, value in (launched | setting).items():
        monkeypatch.setenv(name, value)
    code = cli.main(["eval", "nowhere", *words])
    said = capsys.readouterr().err
    if rank == "0":
        assert code == 2
        assert said.startswith(f"swaa eval: {message}")
        assert said.count("\n") == 1
    else:  # the first process speaks for all
        assert (code, said) == (0, "")
