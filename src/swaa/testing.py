"""Judge an attention backend: which keys did each row see, and how far is it from fp64.

It serves our own tests and third-party backends. :func:`keys_seen` is exact: a window one key too
wide shows at any length. :func:`assert_close_to_oracle` is relative to the error of eager PyTorch
in the same dtype, so nobody tunes a tolerance by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swaa.attention import AttentionOutput, swaa_attention


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of the table: sizes in tokens and heads, the mask as the numbers of the one rule.

    ``starts`` holds the left padding of each sequence; ``full_from`` and ``full_until`` count from
    the first slot, padding included. Where ``keys`` exceeds ``queries``, the first keys are a
    prefix already cached.
    """

    queries: int
    keys: int | None = None
    window: int | None = 4
    sink_tokens: int = 0
    full_from: int | None = None
    full_until: int | None = None
    starts: tuple[int, ...] = (0,)
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 64

    @property
    def key_count(self) -> int:
        """Keys per sequence, padding included."""
        return self.queries if self.keys is None else self.keys

    @property
    def id(self) -> str:
        """A readable test id."""
        parts = [f"q{self.queries}", f"k{self.key_count}", f"w{self.window}"]
        parts.append(f"s{self.sink_tokens}")
        if self.full_from is not None:
            parts.append(f"full{self.full_from}-{self.full_until or ''}")
        if any(self.starts) or len(self.starts) > 1:
            parts.append("pad" + ".".join(map(str, self.starts)))
        return "-".join([*parts, f"h{self.heads}.{self.kv_heads}", f"d{self.head_dim}"])

    def arguments(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The keyword arguments of :func:`swaa.swaa_attention` that state this mask."""
        arguments: dict[str, Any] = {
            "window": self.window,
            "sink_tokens": self.sink_tokens,
            "full_from": self.full_from,
            "full_until": self.full_until,
        }
        if any(self.starts):
            arguments["kv_start"] = torch.tensor(self.starts, dtype=torch.int32, device=device)
        return arguments

    def expected(self) -> Tensor:
        """The rule as a plain loop, written apart from ``mask.py``: bool ``[batch, q, k]``."""
        # Lists of numbers: single elements of a tensor take far longer to write.
        return torch.tensor(
            [[self._row(row, start) for row in range(self.queries)] for start in self.starts]
        )

    def _row(self, row: int, start: int) -> list[bool]:
        i = self.key_count - self.queries + row
        full = self.window is None or (
            self.full_from is not None
            and self.full_from <= i
            and (self.full_until is None or i < self.full_until)
        )
        seen = []
        for j in range(self.key_count):
            in_window = self.window is not None and i - j < self.window
            visible = full or in_window or j - start < self.sink_tokens
            seen.append(start <= j <= i and visible)
        return seen


SHAPES = (
    Case(queries=1, window=1),
    Case(queries=1, window=8, sink_tokens=3),
    Case(queries=63, window=1),
    Case(queries=63, window=1, sink_tokens=1),
    Case(queries=130, window=16, sink_tokens=3),
    Case(queries=130, window=16, sink_tokens=40),  # sinks beyond the window
    Case(queries=257, window=64, sink_tokens=10, heads=4, kv_heads=1),
    Case(queries=257, window=300, sink_tokens=4),  # window beyond the length
    Case(queries=257, window=None),
    Case(queries=130, window=None, starts=(0, 7)),
    Case(queries=257, window=33, sink_tokens=5, full_from=240),
    Case(queries=257, window=33, sink_tokens=5, full_from=100, full_until=131),
    Case(queries=130, window=20, sink_tokens=6, starts=(0, 1, 64, 129), head_dim=80),
    Case(queries=130, window=20, sink_tokens=6, full_from=120, starts=(0, 33), head_dim=96),
    Case(queries=130, window=128, sink_tokens=10, heads=8, kv_heads=1, head_dim=128),
    Case(queries=63, keys=257, window=50, sink_tokens=9),  # a chunk after a cached prefix
    Case(queries=63, keys=257, window=50, sink_tokens=9, full_from=250, starts=(0, 100)),
    Case(queries=1, keys=257, window=50, sink_tokens=9),
    Case(queries=1, keys=257, window=50, sink_tokens=9, full_from=256),
    Case(queries=1, keys=130, window=64, sink_tokens=10, heads=16, kv_heads=2),
    Case(queries=8, keys=257, window=50, sink_tokens=9, full_from=253, heads=8, kv_heads=2),
    Case(queries=8, keys=130, window=3, sink_tokens=0, starts=(0, 77), head_dim=128),
    Case(queries=70, window=33, sink_tokens=2, head_dim=256),
)
"""Every backend is tested on these, odd sizes included."""


def make_inputs(
    case: Case, *, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Random ``q, k, v`` for a case, layout ``[batch, tokens, heads, head_dim]``."""
    generator = torch.Generator().manual_seed(seed)
    batch = len(case.starts)

    def normal(tokens: int, heads: int) -> Tensor:
        x = torch.randn(batch, tokens, heads, case.head_dim, generator=generator)
        return x.to(device=device, dtype=dtype)

    return (
        normal(case.queries, case.heads),
        normal(case.key_count, case.kv_heads),
        normal(case.key_count, case.kv_heads),
    )


def keys_seen(
    attention: Callable[[Tensor, Tensor, Tensor], AttentionOutput | Tensor],
    *,
    batch: int,
    queries: int,
    keys: int,
    heads: int = 1,
    kv_heads: int = 1,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Which keys each query row saw, by experiment.

    Zero queries give all visible keys the same weight. With values that are one-hot in the key's
    position, the output then shows which keys a row saw: ``head_dim`` keys per call.

    Args:
        attention: maps ``q, k, v`` of layout ``[batch, tokens, heads, head_dim]`` to the output,
            a tensor of the shape of ``q`` or an :class:`swaa.AttentionOutput`.
        batch: sequences.
        queries: query rows.
        keys: key slots.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: channels per head.
        dtype: of all inputs.
        device: of all inputs.

    Returns:
        bool ``[batch, queries, keys]``.

    Raises:
        AssertionError: when heads saw different keys, or when :func:`keys_seen_by_head` fails.
    """
    seen = keys_seen_by_head(
        attention,
        batch=batch,
        queries=queries,
        keys=keys,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        device=device,
    )
    assert (seen == seen[:, :1]).all(), "heads saw different keys"
    return seen[:, 0]


def keys_seen_by_head(
    attention: Callable[[Tensor, Tensor, Tensor], AttentionOutput | Tensor],
    *,
    batch: int,
    queries: int,
    keys: int,
    heads: int = 1,
    kv_heads: int = 1,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Like :func:`keys_seen`, for masks that differ between heads.

    Returns:
        bool ``[batch, heads, queries, keys]``.

    Raises:
        AssertionError: when the output is not finite, a row weighs its keys unequally (a key was
            counted twice), or a row's weights do not sum to one.
    """
    q = torch.zeros(batch, queries, heads, head_dim, dtype=dtype, device=device)
    k = torch.randn(batch, keys, kv_heads, head_dim, device=device).to(dtype)
    weights = torch.zeros(batch, queries, heads, keys)
    for first in range(0, keys, head_dim):
        count = min(head_dim, keys - first)
        v = torch.zeros(batch, keys, kv_heads, head_dim, dtype=dtype, device=device)
        v[:, first : first + count, :, :count] = torch.eye(count, dtype=dtype)[:, None].to(device)
        output = attention(q, k, v)
        output = output.output if isinstance(output, AttentionOutput) else output
        assert torch.isfinite(output).all(), "the output is not finite"
        weights[..., first : first + count] = output[..., :count].float().cpu()
    seen = weights > 0
    largest = weights.amax(dim=-1, keepdim=True)
    even = (weights - largest).abs() <= 2 * torch.finfo(dtype).eps * largest
    assert (even | ~seen).all(), "a row weighs its keys unequally: a key was counted twice"
    total = weights.sum(dim=-1)
    rounding = torch.finfo(dtype).eps * seen.sum(dim=-1).clamp(min=1)
    one = ((total - 1).abs() <= rounding) | ~seen.any(dim=-1)
    assert one.all(), "the weights of a row do not sum to one"
    return seen.transpose(1, 2)


def assert_sees_the_rule(
    case: Case,
    *,
    backend: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Fail unless the rows of ``backend`` see exactly the keys of the case's mask."""
    seen = keys_seen(
        lambda q, k, v: swaa_attention(q, k, v, backend=backend, **case.arguments(device)),
        batch=len(case.starts),
        queries=case.queries,
        keys=case.key_count,
        heads=case.heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        dtype=dtype,
        device=device,
    )
    wrong = (seen != case.expected()).nonzero()
    assert not len(wrong), f"{backend}: first wrong (sequence, row, key): {wrong[0].tolist()}"


def assert_close_to_oracle(
    actual: Tensor,
    oracle: Tensor,
    eager: Tensor,
    *,
    magnitude: float | None = None,
    name: str = "output",
) -> None:
    """Fail when the error against fp64 exceeds twice that of eager PyTorch plus 2 ulp.

    Args:
        actual: what the backend computed.
        oracle: the reference's result in float64.
        eager: the reference's result in the dtype of ``actual``.
        magnitude: size of the numbers whose ulp counts; default: the largest of ``oracle``. Give
            it where cancellation makes the result far smaller than its terms (gradients).
        name: the tensor's name, for the message.
    """
    assert torch.isfinite(actual).all(), f"{name} is not finite"
    size = oracle.abs().max().item() if magnitude is None else magnitude
    error = (actual.double().cpu() - oracle.cpu()).abs().max().item()
    allowed = 2 * (eager.double().cpu() - oracle.cpu()).abs().max().item()
    allowed += 2 * torch.finfo(actual.dtype).eps * size
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"
