"""Measure attention kernels side by side: ours and the best stock ones, in one process.

A kernel whose mask is wrong gets no number: before it is timed, every kernel shows on this GPU
which keys each row sees, and in ``backward`` its gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from swaa import results
from swaa.attention import AttentionOutput, swaa_attention
from swaa.benchmark.kernels.candidates import Attention, Candidate, candidates
from swaa.benchmark.kernels.work import PHASES, Mask, Shape
from swaa.benchmark.timing import copy_rate, matmul_rate, time_graph, time_work
from swaa.benchmark.unfinished import NOT_BEGUN
from swaa.statistics import Percentiles
from swaa.testing import keys_seen

COLD_BYTES = 512 << 20
"""Bytes that rotating inputs must exceed, so that no cache holds them all."""
GRADIENT_ERROR = 1e-2
"""Largest relative error of a gradient against fp64; correct bf16 kernels have 3e-3."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure: every phase at every length, window and number of sinks.

    ``decode`` measures full rows at batch 1 and sliding rows at ``batch``; window and sinks do not
    affect full rows. With ``decode_keys`` it also measures, at batch 1, full rows that read sinks,
    window and so many other keys, chosen by content.
    """

    phases: tuple[str, ...] = PHASES
    lengths: tuple[int, ...] = (32_768, 131_072)
    backward_lengths: tuple[int, ...] = (32_768,)
    windows: tuple[int, ...] = (2048,)
    sink_tokens: tuple[int, ...] = (128,)
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    batch: int = 32
    dtype: str = "bfloat16"
    backends: tuple[str, ...] = ("triton", "fa4")
    stock: bool = True
    decode_keys: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        unknown = set(self.phases) - set(PHASES)
        if unknown:
            raise ValueError(
                f"unknown phase {sorted(unknown)[0]!r}; choose from {', '.join(PHASES)}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are not a multiple of {self.kv_heads} kv heads")
        if self.dtype not in ("float16", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; choose float16 or bfloat16")

    def measurements(self) -> list[tuple[Shape, Mask]]:
        """Every shape, with our kernels' mask."""
        base = Shape(
            phase="prefill",
            tokens=1,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype=getattr(torch, self.dtype),
        )
        masks = [
            Mask(window=window, sink_tokens=sinks)
            for window in self.windows
            for sinks in self.sink_tokens
        ]
        found = []
        for phase in self.phases:
            lengths = self.backward_lengths if phase == "backward" else self.lengths
            for tokens in lengths:
                if phase == "decode":
                    full = replace(base, phase=phase, tokens=tokens)
                    found.append((full, Mask(window=None)))
                    found += [
                        (full, replace(mask, decode_keys=chosen))
                        for mask in masks
                        for chosen in self.decode_keys
                    ]
                else:
                    found += [(replace(base, phase=phase, tokens=tokens), mask) for mask in masks]
            if phase == "decode":
                for mask in masks:
                    assert mask.window is not None
                    tokens = 2 * (mask.window + mask.sink_tokens)
                    shape = replace(base, phase=phase, tokens=tokens, batch=self.batch)
                    found.append((shape, mask))
        return found


def measure(
    options: Options, keep: Callable[[results.Result], object] = lambda _result: None
) -> results.Result:
    """Run the comparison on the current GPU, and print one line per kernel as it is measured.

    Args:
        options: what to measure.
        keep: takes the result so far, after each kernel; it holds those to come as not begun.

    Raises:
        ValueError: without a CUDA GPU.
    """
    if not torch.cuda.is_available():
        raise ValueError("needs a CUDA GPU, and torch sees none")
    torch.manual_seed(0)
    begin = time.perf_counter()
    rates = matmul_rate(getattr(torch, options.dtype)), copy_rate()
    print(f"matmul {rates[0] / 1e12:.0f} TFLOP/s, copy {rates[1] / 1e12:.2f} TB/s", flush=True)
    provenance = results.record_provenance(
        device="cuda",
        dtype=options.dtype,
        seed=0,
        packages=("flash-attn-4", "nvidia-cutlass-dsl"),
    )
    first: Row = {"phase": "ceiling", "matmul": rates[0], "copy": rates[1]}

    def so_far(rows: list[Row]) -> results.Result:
        return results.Result(
            kind="kernels",
            name=file_name(options),
            config=config_of(options),
            rows=(first, *rows),
            provenance=replace(provenance, seconds=round(time.perf_counter() - begin, 3)),
        )

    work = list(_work(options))
    rows = [_row(*one) | {"refused": NOT_BEGUN} for one in work]
    for i, one in enumerate(work):
        rows[i] = _measure_one(*one, *rates)
        print(describe(rows[i]), flush=True)
        keep(so_far(rows))
        torch.cuda.empty_cache()
    return so_far(rows)


def _work(options: Options) -> Iterator[tuple[Candidate, Shape]]:
    for shape, mask in options.measurements():
        for candidate in candidates(
            shape.phase, mask, backends=options.backends, stock=options.stock
        ):
            yield candidate, shape


def file_name(options: Options) -> str:
    """Name of the result: the number of heads and the head size."""
    return f"attention-h{options.heads}.{options.kv_heads}-d{options.head_dim}"


def config_of(options: Options) -> dict[str, Any]:
    """What distinguishes a run: the options, and the GPU."""
    given = asdict(options)
    if not options.decode_keys:
        del given["decode_keys"]  # as older results were named
    return {**given, "gpu": torch.cuda.get_device_name()}


def _row(candidate: Candidate, shape: Shape) -> Row:
    return {
        "phase": shape.phase,
        "tokens": shape.tokens,
        "batch": shape.batch,
        "mask": candidate.mask.label,
        "kernel": candidate.name,
        "ours": candidate.ours,
        "refused": None,
    }


def _measure_one(candidate: Candidate, shape: Shape, matmul: float, copy: float) -> Row:
    row = _row(candidate, shape)
    try:
        require_exact(candidate, shape)
        times = _time(candidate, shape)
    except Exception as error:  # a kernel that fails is a row of the table, not the end of it
        return row | {"refused": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    flops = shape.flops(candidate.mask) / times.p50
    traffic = shape.kv_bytes(candidate.mask) / times.p50
    return row | {
        "p20": times.p20,
        "p50": times.p50,
        "p80": times.p80,
        "useful_flops": flops,
        "of_matmul": flops / matmul,
        "kv_bytes_per_second": traffic,
        "of_copy": traffic / copy,
    }


def require_exact(candidate: Candidate, shape: Shape) -> None:
    """Raise unless the kernel shows exactly its mask's keys, at the same window and sinks."""
    mask = candidate.mask
    keys = 1000
    if mask.window is not None:
        keys = mask.window + mask.sink_tokens + mask.decode_keys + 300
    queries = 1 if shape.phase == "decode" else keys
    attend = candidate.prepare(queries, keys)
    group = shape.heads // shape.kv_heads
    seen = keys_seen(
        lambda q, k, v: AttentionOutput(attend(q, k, v), None),
        batch=1,
        queries=queries,
        keys=keys,
        heads=group,
        kv_heads=1,
        head_dim=shape.head_dim,
        dtype=shape.dtype,
        device="cuda",
    )
    wrong = int((seen[0] != mask.seen(queries, keys)).sum())
    if wrong:
        raise AssertionError(f"wrong mask: {wrong} of {seen.numel()} pairs at {keys} keys")
    if shape.phase == "backward":
        _require_gradients(candidate, shape, attend, keys)


def _require_gradients(candidate: Candidate, shape: Shape, attend: Attention, keys: int) -> None:
    q = torch.randn(
        (1, keys, shape.heads // shape.kv_heads, shape.head_dim), dtype=shape.dtype, device="cuda"
    )
    k, v = torch.randn((2, 1, keys, 1, shape.head_dim), dtype=shape.dtype, device="cuda").unbind()
    weight = torch.randn_like(q)
    mask = candidate.mask

    def oracle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = {"window": mask.window, "sink_tokens": mask.sink_tokens}
        return swaa_attention(q, k, v, backend="reference", **options).output

    actual = _gradients(attend, q, k, v, weight)
    expected = _gradients(oracle, *(x.double() for x in (q, k, v, weight)))
    for name, a, e in zip("qkv", actual, expected, strict=True):
        error = float((a.double() - e).norm() / e.norm())
        if not error < GRADIENT_ERROR:
            raise AssertionError(f"wrong gradient: d{name} is off by {error:.1e}")


def _gradients(
    attend: Attention, q: Tensor, k: Tensor, v: Tensor, weight: Tensor
) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    return torch.autograd.grad(attend(*leaves), leaves, weight)


def _time(candidate: Candidate, shape: Shape) -> Percentiles:
    attend = candidate.prepare(shape.queries, shape.tokens)
    if shape.phase == "decode":
        bytes_each = shape.kv_bytes(candidate.mask)
        sets = [shape.inputs() for _ in range(max(2, math.ceil(COLD_BYTES / bytes_each)))]
        return time_graph([lambda one=one: attend(*one) for one in sets])
    q, k, v = shape.inputs()
    if shape.phase == "prefill":
        return time_work(lambda: attend(q, k, v))
    weight = torch.randn_like(q)
    return time_work(lambda: _gradients(attend, q, k, v, weight))


def describe(row: Row) -> str:
    """One measured kernel as a line."""
    size = f"{row['tokens']:>7} x {row['batch']:<3}"
    head = f"{row['phase']} {size}{row['kernel']:<25} {row['mask']:<24}"
    if row["refused"]:
        return f"{head} not measured: {row['refused']}"
    middle = " ".join(f"{1e3 * row[key]:.3f}" for key in ("p20", "p50", "p80"))
    if row["phase"] == "decode":
        rate = f"{row['kv_bytes_per_second'] / 1e12:.2f} TB/s, {row['of_copy']:.1%} of copy"
    else:
        rate = f"{row['useful_flops'] / 1e12:.0f} useful TFLOP/s, {row['of_matmul']:.1%} of matmul"
    return f"{head} {middle} ms, {rate}"
