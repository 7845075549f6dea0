"""Which GPUs a result names, from what `nvidia-smi -L` prints and from CUDA_VISIBLE_DEVICES."""

import pytest

from swaa import results
from swaa.benchmark.serve.device import local_device

TWO = """\
GPU 0: NVIDIA H200 (UUID: GPU-4cf8db2d-06c0)
GPU 1: NVIDIA H200 (UUID: GPU-4d01a2b3-77aa)
"""
MIXED = """\
GPU 0: NVIDIA H200 (UUID: GPU-4cf8db2d-06c0)
  MIG 1g.18gb     Device  0: (UUID: MIG-c6d4f1ef-42e4)
  MIG 3g.71gb     Device  1: (UUID: MIG-aa00f1ef-42e4)
GPU 1: NVIDIA L4 (UUID: GPU-4d01a2b3-77aa)
GPU 2: NVIDIA L4 (UUID: GPU-99999999-77aa)
"""
CPU = "the CPU"


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Puts an `nvidia-smi` before all others that prints a text, or fails."""

    def put(text, code=0):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "nvidia-smi"
        program.write_text(
            f'#!/bin/sh\n[ "$*" = -L ] || exit 9\n/bin/cat <<END\n{text}END\nexit {code}\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(results, "_device_name", lambda device: CPU)
    return put


@pytest.mark.parametrize(
    ("listing", "wanted", "named"),
    [
        (TWO, None, "2 x NVIDIA H200"),
        (TWO, "0", "NVIDIA H200"),
        (TWO, "0,1", "2 x NVIDIA H200"),
        (TWO, " 1 , 0 ", "2 x NVIDIA H200"),
        (TWO, "GPU-4d01a2b3-77aa", "NVIDIA H200"),
        (TWO, "GPU-4d", "NVIDIA H200"),
        (TWO, "GPU-4", CPU),  # of two
        (TWO, "", CPU),
        (TWO, "-1", CPU),
        (TWO, "0,-1,1", "NVIDIA H200"),
        (TWO, "0,2,1", "NVIDIA H200"),
        (TWO, "0,0", CPU),
        (TWO, "NoDevFiles", CPU),
        (MIXED, None, "NVIDIA H200, 2 x NVIDIA L4"),
        (MIXED, "2,0", "NVIDIA L4, NVIDIA H200"),
        (MIXED, "MIG-aa00f1ef-42e4", "NVIDIA H200 MIG 3g.71gb"),
        ("No devices found.\n", None, CPU),
        ("", "0", CPU),
    ],
)
def test_the_gpus_that_cuda_programs_may_use_are_named(listed, monkeypatch, listing, wanted, named):
    listed(listing)
    if wanted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert local_device() == named


def test_without_a_driver_it_is_the_cpu(listed, monkeypatch, tmp_path):
    listed(TWO, code=9)
    assert local_device() == CPU
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local_device() == CPU
