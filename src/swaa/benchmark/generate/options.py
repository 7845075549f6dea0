"""What `swaa bench generate` measures, and what distinguishes runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from swaa.config import SWAAConfig
from swaa.integrations.transformers.fast import CHUNK

STOCK, NOTHING = "stock", "no attention"
"""Rows in addition to those of recipes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure: every recipe at every length and batch.

    Attributes:
        model: a key of :data:`swaa.model_shapes.SHAPES`, or a checkpoint.
        recipes: configurations by name.
        lengths: of the prompt (tokens).
        batches: sequences at once.
        new_tokens: of each answer.
        chunk: prompt tokens of a forward pass.
        repeats: most timings of the first token at each size.
        dtype: of weights and cache.
        compiled: whether the decoder layers are compiled, for every row alike.
        time_limit: seconds after which no new row begins; the remaining rows say so, and the run
            counts as unfinished.
    """

    model: str
    recipes: Mapping[str, SWAAConfig]
    lengths: tuple[int, ...] = (8192, 32_768, 131_072)
    batches: tuple[int, ...] = (1,)
    new_tokens: int = 128
    chunk: int = CHUNK
    repeats: int = 5
    dtype: str = "bfloat16"
    compiled: bool = True
    time_limit: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; choose float32, float16 or bfloat16")
        if self.new_tokens < 2:
            raise ValueError(
                f"new_tokens is {self.new_tokens}; the time per token needs at least 2"
            )
        if STOCK in self.recipes or NOTHING in self.recipes:
            raise ValueError(f"{STOCK!r} and {NOTHING!r} are measured anyway; name other recipes")

    def config(self) -> dict[str, Any]:
        """What distinguishes a run: the options, and where it runs."""
        values = asdict(self) | {
            "model": Path(self.model).name if Path(self.model).is_absolute() else self.model,
            "recipes": {name: config.to_dict() for name, config in self.recipes.items()},
        }
        del values["time_limit"]  # says when to stop, not what to measure
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        return values | {"gpu": gpu}

    def file_name(self) -> str:
        """Name of the result: the model's."""
        return re.sub(r"[^a-z0-9._-]+", "-", self.model.lower().rstrip("/").rpartition("/")[2])


def seen_whole(options: Options) -> str | None:
    """Where recipes see exactly what full attention sees, in one line; ``None``: nowhere."""
    by_lengths: dict[tuple[int, ...], list[str]] = {}
    for name, config in options.recipes.items():
        every = sorted(set(options.lengths))
        lengths = tuple(n for n in every if config.covers(n, options.new_tokens))
        if lengths:
            by_lengths.setdefault(lengths, []).append(name)
    if not by_lengths:
        return None
    parts = [
        f"{_listed(names)} {'sees' if len(names) == 1 else 'see'} everything at"
        f" {_listed([f'{n:,}' for n in lengths])} tokens"
        for lengths, names in by_lengths.items()
    ]
    return f"{'; '.join(parts)}: it is full attention there, and ratios to stock are noise"


def _listed(words: list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
