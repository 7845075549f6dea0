"""Find the tile sizes of our Triton kernels on this GPU: one knob at a time, exact masks first.

From the tile in use, each knob moves to its neighbours; a faster tile is kept, until no move
helps. A tile whose mask or gradients are wrong, or that does not compile, is never kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from swaa.attention import swaa_attention
from swaa.attention.triton import tiles
from swaa.attention.triton.hopper import LEAST_STAGES, is_hopper
from swaa.attention.triton.tiles import Tile, forced, table_entries, table_names, tile_for
from swaa.benchmark.kernels.candidates import Attention, Candidate
from swaa.benchmark.kernels.measure import require_exact
from swaa.benchmark.kernels.work import Mask, Shape
from swaa.benchmark.timing import time_work

KERNELS = ("hopper", "prefill", "dq", "dkdv", "sinks")
"""Kernels that have a table; ``hopper`` serves prefill on compute capability 9.0."""
BLOCKS = (16, 32, 64, 128, 256)
STAGES = (1, 2, 3, 4, 5)
GAIN = 0.99
"""A tile replaces another when it takes less than this fraction of its time."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to tune, and on which work.

    Attributes:
        kernels: from :data:`KERNELS`; ``hopper`` is skipped on other GPUs.
        head_dims: channels per head; each gets an entry.
        dtype: ``bfloat16`` or ``float16``; both share the entries.
        tokens: length of the prompt that is timed.
        window: keys a sliding row sees.
        sink_tokens: first tokens that every row sees.
    """

    kernels: tuple[str, ...] = KERNELS
    head_dims: tuple[int, ...] = (64, 128, 256)
    dtype: str = "bfloat16"
    tokens: int = 16_384
    window: int = 2048
    sink_tokens: int = 128

    def __post_init__(self) -> None:
        unknown = set(self.kernels) - set(KERNELS)
        if unknown:
            names = ", ".join(KERNELS)
            raise ValueError(f"unknown kernel {sorted(unknown)[0]!r}; choose from {names}")
        if self.dtype not in ("float16", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; choose float16 or bfloat16")
        if not all(0 < head_dim <= 256 for head_dim in self.head_dims):
            raise ValueError(f"head_dims are {self.head_dims}; each must be 1 to 256")

    def shape(self, kernel: str, head_dim: int) -> Shape:
        """The work that a kernel is timed on."""
        phase = "prefill" if kernel in ("hopper", "prefill") else "backward"
        dtype = getattr(torch, self.dtype)
        return Shape(phase=phase, tokens=self.tokens, head_dim=head_dim, dtype=dtype)


Table = dict[str, dict[str, dict[str, dict]]]
"""``{kernel: {bits of the dtype: {head_dim: tile}}}``, like the shipped tables."""


def tune(options: Options) -> Table:
    """Tune on the current GPU, and print one line per tile tried.

    Args:
        options: what to tune.

    Returns:
        The table of this GPU: everything in use, with what was tuned replaced.

    Raises:
        ValueError: without a CUDA GPU.
    """
    if not torch.cuda.is_available():
        raise ValueError("needs a CUDA GPU, and torch sees none")
    device = torch.device("cuda", torch.cuda.current_device())
    table = table_in_force(device)
    for kernel in options.kernels:
        if kernel == "hopper" and not is_hopper(device):
            continue
        for head_dim in options.head_dims:
            shape = options.shape(kernel, head_dim)
            mask = Mask(window=options.window, sink_tokens=options.sink_tokens)
            first = tile_for(kernel, device, shape.dtype, head_dim)
            best = descend(
                first,
                lambda tile, kernel=kernel: neighbours(kernel, tile, device),
                Stopwatch(kernel, shape, mask, print),
            )
            table[kernel]["16"][str(head_dim)] = asdict(best)
    return table


def descend(
    tile: Tile, moves: Callable[[Tile], Iterator[Tile]], seconds: Callable[[Tile], float]
) -> Tile:
    """The tile that no move makes faster.

    Args:
        tile: where to begin.
        moves: neighbours of a tile.
        seconds: how long a tile takes; infinity where it cannot run.
    """
    tried = {tile: seconds(tile)}
    while True:
        best = tile
        for other in moves(tile):
            if other not in tried:
                tried[other] = seconds(other)
            if tried[other] < tried[best] * GAIN:
                best = other
        if best == tile:
            return tile
        tile = best


def neighbours(kernel: str, tile: Tile, device: torch.device) -> Iterator[Tile]:
    """Tiles that differ in one knob; the Hopper kernel fixes all but keys and stages."""
    knobs: dict[str, tuple] = {"block_n": BLOCKS, "stages": STAGES}
    if kernel == "hopper":
        knobs["stages"] = tuple(n for n in STAGES if n >= LEAST_STAGES)
    else:
        knobs |= {"block_m": BLOCKS, "warps": (4, 8)}
    for knob, values in knobs.items():
        at = values.index(getattr(tile, knob))
        for i in (at - 1, at + 1):
            if 0 <= i < len(values):
                yield replace(tile, **{knob: values[i]})
    if kernel != "hopper" and torch.cuda.get_device_capability(device) >= (9, 0):
        yield replace(tile, tma=not tile.tma)


class Stopwatch:
    """Times some work with a tile, after checking that its mask (and gradients) are exact."""

    def __init__(
        self, kernel: str, shape: Shape, mask: Mask, report: Callable[[str], None]
    ) -> None:
        self.kernel = kernel
        self.shape = shape
        self.report = report
        prepare = _any_prefill(mask) if kernel == "prefill" else _plain(mask)
        self.candidate = Candidate(name=kernel, mask=mask, prepare=prepare, ours=True)
        self.inputs = shape.inputs()

    def __call__(self, tile: Tile) -> float:
        """Median seconds, or infinity where the tile cannot run or is wrong."""
        head = f"{self.kernel} head_dim {self.shape.head_dim} {_words(tile)}"
        try:
            with forced(self.kernel, tile):
                require_exact(self.candidate, self.shape)
                seconds = self._time()
        except Exception as error:  # out of shared memory, a compiler's limit: skip this tile
            self.report(f"{head}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            return float("inf")
        self.report(f"{head}: {1e3 * seconds:.3f} ms")
        return seconds

    def _time(self) -> float:
        attend = self.candidate.prepare(self.shape.queries, self.shape.tokens)
        if self.shape.phase == "prefill":
            return time_work(lambda: attend(*self.inputs), seconds=0.1).p50
        leaves = [x.detach().requires_grad_() for x in self.inputs]
        output = attend(*leaves)
        weight = torch.randn_like(output)
        work = lambda: torch.autograd.grad(output, leaves, weight, retain_graph=True)  # noqa: E731
        return time_work(work, seconds=0.1).p50


def _plain(mask: Mask) -> Callable[[int, int], Attention]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return swaa_attention(
            *(q, k, v), window=mask.window, sink_tokens=mask.sink_tokens, backend="triton"
        ).output

    return lambda queries, keys: attend


def _any_prefill(mask: Mask) -> Callable[[int, int], Attention]:
    """A call that passes where keys begin and end, which the Hopper kernel does not serve."""

    def prepare(queries: int, keys: int) -> Attention:
        start = torch.zeros(1, dtype=torch.int32, device="cuda")
        end = torch.full((1,), keys, dtype=torch.int32, device="cuda")

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return swaa_attention(
                *(q, k, v),
                window=mask.window,
                sink_tokens=mask.sink_tokens,
                kv_start=start,
                kv_lens=end,
                backend="triton",
            ).output

        return attend

    return prepare


def table_in_force(device: torch.device) -> Table:
    """Every 16-bit and 32-bit entry that a device uses now, copied."""
    table: Table = {}
    for kernel in KERNELS:
        for size, dtype in (("16", torch.bfloat16), ("32", torch.float32)):
            entries = table_entries(kernel, device, dtype)
            if entries:
                table.setdefault(kernel, {})[size] = json.loads(json.dumps(entries[0]))
    return table


def save(table: Table, folder: Path | str | None = None) -> Path:
    """Write the table of the current GPU; it is used from the next start of Python on.

    Args:
        table: from :func:`tune`.
        folder: where to; default the package's own tables.

    Raises:
        ValueError: the folder cannot be written.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    path = Path(folder or tiles.TABLES) / f"{table_names(device)[0]}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(table, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; name a folder that can") from None
    return path


def _words(tile: Tile) -> str:
    tma = " tma" if tile.tma else ""
    return f"{tile.block_m}x{tile.block_n} warps {tile.warps} stages {tile.stages}{tma}"
