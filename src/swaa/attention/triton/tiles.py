"""The tile sizes of each kernel: a table per GPU, measured, shipped as JSON."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

TABLES = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How one kernel is cut and compiled.

    Attributes:
        block_m: query rows per program or step.
        block_n: keys per program or step.
        warps: warps per program.
        stages: key (or row) blocks in flight.
        tma: whether the copy engine (Hopper and later) loads tiles, not pointers.
        registers: most registers per thread; 0: the compiler chooses.
    """

    block_m: int
    block_n: int
    warps: int = 4
    stages: int = 2
    tma: bool = False
    registers: int = 0


_forced: dict[str, Tile] = {}


@contextlib.contextmanager
def forced(kernel: str, tile: Tile) -> Iterator[None]:
    """Run a kernel with this tile instead of the table's, for tuning."""
    _forced[kernel] = tile
    try:
        yield
    finally:
        del _forced[kernel]


def tile_for(kernel: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Tile:
    """The tile of a kernel: from the table of this GPU, of its architecture, or of any GPU.

    Args:
        kernel: a key of the tables (``prefill``, ``dq``, ``dkdv``, ``sinks``, ...).
        device: where it runs.
        dtype: of q, k and v.
        head_dim: channels per head; the entry of the next larger size serves.
    """
    return _forced.get(kernel) or _tile_of_table(kernel, device, dtype, head_dim)


@functools.cache
def _tile_of_table(kernel: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Tile:
    for entries in table_entries(kernel, device, dtype):
        fitting = [int(key) for key in entries if int(key) >= head_dim]
        if fitting:
            return Tile(**entries[str(min(fitting))])
    raise AssertionError(f"default.json has no tile for {kernel}, {dtype}, head_dim {head_dim}")


def table_entries(kernel: str, device: torch.device, dtype: torch.dtype) -> list[dict[str, dict]]:
    """``{head_dim: tile}`` of a kernel in each table that may apply to a device, best first."""
    size = "32" if dtype == torch.float32 else "16"
    found = [load_table(name).get(kernel, {}).get(size, {}) for name in table_names(device)]
    return [entries for entries in found if entries]


def table_names(device: torch.device) -> tuple[str, ...]:
    """Tables that may apply to a device, best first, without ``.json``."""
    if device.type != "cuda":
        return ("interpreter", "default")
    properties = torch.cuda.get_device_properties(device)
    gpu = re.sub(r"[^a-z0-9]+", "_", properties.name.lower()).strip("_")
    if torch.version.hip:
        return (gpu, properties.gcnArchName.split(":")[0], "amd", "default")
    return (gpu, f"sm{properties.major}{properties.minor}", f"sm{properties.major}0", "default")


@functools.cache
def load_table(name: str) -> dict:
    """``{kernel: {bits of the dtype: {head_dim: tile}}}``, empty where there is no such table."""
    path = TABLES / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}
