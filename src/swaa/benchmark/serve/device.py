"""What this machine's servers run on, found without creating a context on a GPU."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from swaa import results

_GPU = re.compile(r"GPU \d+: (?P<name>.+) \(UUID: (?P<uuid>\S+)\)")
_PART = re.compile(r"MIG (?P<size>\S+) +Device +\d+: \(UUID: (?P<uuid>\S+)\)")


class Gpu(NamedTuple):
    """A GPU, or a part of one that MIG made.

    Attributes:
        name: of the chip; for a part, its size too.
        uuid: begins with ``GPU-``, or with ``MIG-`` for a part.
    """

    name: str
    uuid: str


def local_device() -> str:
    """Name of this machine's GPUs that CUDA programs may use, or of its CPU."""
    gpus = visible(_list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not gpus:
        return results.record_provenance(device="cpu").device
    counts = Counter(gpu.name for gpu in gpus)
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())


def visible(gpus: Sequence[Gpu], wanted: str | None) -> list[Gpu]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, by the CUDA programming guide.

    >>> both = [Gpu("H200", "GPU-1a"), Gpu("L4", "GPU-2b")]
    >>> [gpu.name for gpu in visible(both, "GPU-2")]
    ['L4']

    Args:
        gpus: all GPUs, in PCI bus order. CUDA may order GPUs of different kinds in another way,
            unless ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` is set.
        wanted: the variable: indices and beginnings of UUIDs, separated by commas. The first one
            that names no GPU ends the list; an empty variable leaves none. ``None``: the variable
            is not set, which leaves all.
    """
    whole = [gpu for gpu in gpus if gpu.uuid.startswith("GPU-")]
    if wanted is None:
        return whole
    found: list[Gpu] = []
    for word in map(str.strip, wanted.split(",")):
        if word.isdecimal():
            named = whole[int(word) : int(word) + 1]
        elif word.startswith(("GPU-", "MIG-")):
            named = [gpu for gpu in gpus if gpu.uuid.startswith(word)]
        else:
            named = []
        if len(named) != 1:
            break
        found += named
    # If one GPU is named twice, CUDA shows none.
    return found if len(set(found)) == len(found) else []


def _list_gpus() -> list[Gpu]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    gpus, chip = [], ""
    for line in map(str.strip, done.stdout.splitlines()):
        if gpu := _GPU.fullmatch(line):
            chip = gpu["name"]
            gpus.append(Gpu(chip, gpu["uuid"]))
        elif part := _PART.fullmatch(line):
            gpus.append(Gpu(f"{chip} MIG {part['size']}", part["uuid"]))
    return gpus
