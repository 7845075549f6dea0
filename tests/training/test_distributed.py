"""Two processes on the CPU (gloo) give the losses and the adapter of one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

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


def _train(launcher, checkpoint, data, out, accumulate):
    words = [sys.executable, *launcher, "train", str(checkpoint), "--data", str(data)]
    words += ["--out", str(out), "--accumulate", str(accumulate), *FLAGS]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (out / "loss.jsonl").read_text().splitlines()]
    record = json.loads((out / "training.json").read_text())
    return rows, record["processes"], load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    from tests.training.conftest import conversations, write_lines

    folder = tmp_path_factory.mktemp("alone")
    data = write_lines(folder / "data.jsonl", conversations())
    return data, _train(["-m", "swaa"], checkpoint, data, folder / "out", 2)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["swaa", "tests.training.sharded"], ids=["ddp", "fsdp2"])
def test_two_processes_are_one(alone, checkpoint, tmp_path, module):
    data, (rows, processes, adapter) = alone
    assert processes == 1
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher += ["-m", module]
    found, processes, again = _train(launcher, checkpoint, data, tmp_path / "out", 1)
    assert processes == 2
    assert len(found) == len(rows) == 4
    assert rows[-1]["loss"] != rows[0]["loss"]
    for ours, theirs in zip(found, rows, strict=True):
        for name in ("loss", "sft", "kl", "answer_tokens"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    ours, theirs = (torch.cat([x[name].flatten() for name in adapter]) for x in (again, adapter))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
