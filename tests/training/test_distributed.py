"""Two processes on the CPU (gloo) give the losses and the adapter of one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.launched import launch

FLAGS = [
    "--window",
    "16",
    "--sink-tokens",
    "2",
    "--full-layers",
    "1",
    "--full-decode",
    "all",
    "--dense-tail",
    "4",
    "--max-length",
    "400",
    "--learning-rate",
    "0.001",
    "--warmup",
    "0",
    "--epochs",
    "2",
    "--objective",
    "sft+kl",
    "--batch-size",
    "2",
    "--no-merge",
]


LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def _words(checkpoint, data, out, accumulate):
    words = ["train", str(checkpoint), "--data", str(data), "--out", str(out)]
    return [*words, "--accumulate", str(accumulate), *FLAGS]


def _left(out):
    """The curve, the number of processes, and the adapter."""
    rows = [json.loads(line) for line in (out / "loss.jsonl").read_text().splitlines()]
    record = json.loads((out / "training.json").read_text())
    return rows, record["processes"], load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    from tests.training.conftest import conversations, write_lines

    folder = tmp_path_factory.mktemp("alone")
    data = write_lines(folder / "data.jsonl", conversations())
    words = _words(checkpoint, data, folder / "out", 2)
    ended = launch("swaa.cli", words, count=1, folder=folder)
    assert ended.codes == [0], ended.stderr[-2000:]
    return data, _left(folder / "out")


def _is_the_one(alone, out):
    _, (rows, processes, adapter) = alone
    assert processes == 1
    found, processes, again = _left(out)
    assert processes == 2
    assert len(found) == len(rows) == 4
    assert rows[-1]["loss"] != rows[0]["loss"]
    for ours, theirs in zip(found, rows, strict=True):
        for name in ("loss", "sft", "kl", "answer_tokens"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    ours, theirs = (torch.cat([x[name].flatten() for name in adapter]) for x in (again, adapter))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.slow
def test_two_processes_of_the_launcher_are_one(alone, checkpoint, tmp_path):
    words = [sys.executable, *LAUNCHER, "-m", "swaa"]
    words += _words(checkpoint, alone[0], tmp_path / "out", 1)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    _is_the_one(alone, tmp_path / "out")


@pytest.mark.slow
def test_two_shards_are_one(alone, checkpoint, tmp_path):
    words = _words(checkpoint, alone[0], tmp_path / "out", 1)
    ended = launch("tests.training.sharded", words, count=2, folder=tmp_path)
    assert ended.codes == [0, 0], ended.stderr[-2000:]
    _is_the_one(alone, tmp_path / "out")
