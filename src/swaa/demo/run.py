"""Run the demo: needles answered, a long prefill timed, KV counted, setting by setting."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swaa.config import SWAAConfig
from swaa.demo.needles import Needle, make_needles
from swaa.evaluation.prompt import plain_ids
from swaa.evaluation.tasks.haystack import read_filler
from swaa.generation import Generation, build_prompt, check_context, generate_answer
from swaa.models import LoadedModel
from swaa.recipes import load_recipe
from swaa.shortcuts import adapted

ANSWER_TOKENS = 24
"""Longest answer to a needle's question: room for a sentence with seven digits."""

MOST_SPREAD = 1.25
"""Largest ratio of a setting's best to its worst speed-up; above it, other work interfered."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How large the demo is.

    Attributes:
        needles: documents per setting.
        needle_tokens: length of each, needle included (tokens).
        prefill_tokens: length of the timed prompt (tokens).
        rounds: how often every setting is timed, in turn.
        window: of every sliding setting (keys).
        seed: of the needles.
    """

    needles: int = 4
    needle_tokens: int = 1024
    prefill_tokens: int = 4096
    rounds: int = 3
    window: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("needles", "prefill_tokens", "rounds", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class DemoRow:
    """The results of one setting.

    Attributes:
        setting: its name.
        answered: needles found.
        needles: needles hidden.
        prefill_s: time to the first token of the long prompt, the median of all rounds (seconds).
        prefill_low_s: the shortest of those times.
        prefill_high_s: the longest.
        speedup: full attention's median divided by this setting's.
        speedup_low: the least in a single round.
        speedup_high: the most.
        kv_bytes: keys and values held after the long prompt (bytes).
    """

    setting: str
    answered: int
    needles: int
    prefill_s: float
    prefill_low_s: float
    prefill_high_s: float
    speedup: float
    speedup_low: float
    speedup_high: float
    kv_bytes: int

    @property
    def is_noise(self) -> bool:
        """Whether rounds differ so much that the speed-up means nothing."""
        return self.speedup_high > MOST_SPREAD * self.speedup_low


@dataclass(frozen=True, kw_only=True)
class DemoOutcome:
    """Rows of the table, each single answer, and the wall time (seconds)."""

    rows: tuple[DemoRow, ...]
    samples: tuple[dict[str, Any], ...]
    seconds: float


def demo_settings(window: int) -> dict[str, SWAAConfig]:
    """The settings by name, full attention first, at a window that suits the demo's length."""
    fast = load_recipe("fast")
    settings = {
        "full": SWAAConfig(window=None),
        "naive": SWAAConfig(window=window),
        "sinks + full decode": dataclasses.replace(fast, dense_tail=0),
        "balanced": load_recipe("balanced"),
        "fast": fast,
        # Which half to leave full in decoding is a choice per model: the last half for SmolLM2.
        "fast, last half": dataclasses.replace(fast, full_decode="last:1/2"),
    }
    return {
        name: config if config.window is None else dataclasses.replace(config, window=window)
        for name, config in settings.items()
    }


def run_demo(
    loaded: LoadedModel,
    options: DemoOptions,
    *,
    on_step: Callable[[float, str], None] | None = None,
) -> DemoOutcome:
    """Run every setting.

    Args:
        loaded: a model that is not adapted; it is restored afterwards.
        options: sizes.
        on_step: called with the share of the work done, 0 to 1, and what comes next.

    Raises:
        ValueError: when the model cannot take prompts of that length.
    """
    started = time.perf_counter()
    settings = demo_settings(options.window)
    work = _prepare(loaded, options)
    meter = _Meter(len(settings) * work.tokens(options.rounds), on_step)
    samples: list[dict[str, Any]] = []
    for setting, config in settings.items():
        with _adapted(loaded, config):
            samples += _answer_needles(loaded, setting, work, meter)
    timed = _time_in_turns(loaded, settings, work, options.rounds, meter)
    rows = tuple(_row(setting, samples, timed) for setting in settings)
    return DemoOutcome(rows=rows, samples=tuple(samples), seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class _Work:
    """What each setting is given."""

    needles: tuple[tuple[Needle, Tensor], ...]
    long_prompt: Tensor

    def tokens(self, rounds: int) -> int:
        needles = sum(prompt.shape[1] for _, prompt in self.needles)
        return needles + rounds * self.long_prompt.shape[1]


class _Meter:
    """Reports the share of all prompt tokens that is done."""

    def __init__(self, total: int, on_step: Callable[[float, str], None] | None) -> None:
        self._total = total
        self._done = 0
        self._on_step = on_step

    def announce(self, what: str) -> None:
        if self._on_step is not None:
            self._on_step(self._done / self._total, what)

    def add(self, tokens: int) -> None:
        self._done += tokens


def _prepare(loaded: LoadedModel, options: DemoOptions) -> _Work:
    tokenizer = loaded.tokenizer
    needles = make_needles(
        tokenizer, tokens=options.needle_tokens, count=options.needles, seed=options.seed
    )
    ids = plain_ids(tokenizer, read_filler())
    if options.prefill_tokens > len(ids):
        raise ValueError(f"prefill_tokens is {options.prefill_tokens}; the text has {len(ids):,}")
    work = _Work(
        tuple(
            (needle, build_prompt(tokenizer, needle.document, needle.question))
            for needle in needles
        ),
        torch.tensor([ids[: options.prefill_tokens]]),
    )
    # Checked before a minute of work, not after it.
    check_context(loaded, work.long_prompt.shape[1], 1)
    for _, prompt in work.needles:
        check_context(loaded, prompt.shape[1], ANSWER_TOKENS)
    return work


def _adapted(loaded: LoadedModel, config: SWAAConfig) -> AbstractContextManager[object]:
    """The model under a configuration; without a window it stays unchanged."""
    return nullcontext() if config.window is None else adapted(loaded.model, config, quiet=True)


def _answer_needles(
    loaded: LoadedModel, setting: str, work: _Work, meter: _Meter
) -> list[dict[str, Any]]:
    samples = []
    for index, (needle, prompt) in enumerate(work.needles, start=1):
        meter.announce(f"{setting}: needle {index} of {len(work.needles)}")
        reply = generate_answer(loaded, prompt, max_new_tokens=ANSWER_TOKENS)
        meter.add(prompt.shape[1])
        samples.append(
            {
                "setting": setting,
                "question": needle.question,
                "expected": needle.digits,
                "depth": round(needle.depth, 3),
                "prompt_tokens": reply.prompt_tokens,
                "reply": reply.text,
                "answered": needle.is_answered(reply.text),
            }
        )
    return samples


def _time_in_turns(
    loaded: LoadedModel,
    settings: Mapping[str, SWAAConfig],
    work: _Work,
    rounds: int,
    meter: _Meter,
) -> dict[str, list[Generation]]:
    """Time the long prompt under every setting, then again, so that slow moments affect all."""
    timed: dict[str, list[Generation]] = {setting: [] for setting in settings}
    tokens = work.long_prompt.shape[1]
    for number in range(1, rounds + 1):
        for setting, config in settings.items():
            meter.announce(f"{setting}: prefill of {tokens:,} tokens, {number} of {rounds}")
            with _adapted(loaded, config):
                timed[setting].append(generate_answer(loaded, work.long_prompt, max_new_tokens=1))
            meter.add(tokens)
    return timed


def _row(
    setting: str, samples: list[dict[str, Any]], timed: Mapping[str, Sequence[Generation]]
) -> DemoRow:
    answered = [sample["answered"] for sample in samples if sample["setting"] == setting]
    full, ours = ([one.first_token_s for one in timed[name]] for name in ("full", setting))
    single = [theirs / own for theirs, own in zip(full, ours, strict=True)]
    return DemoRow(
        setting=setting,
        answered=sum(answered),
        needles=len(answered),
        prefill_s=statistics.median(ours),
        prefill_low_s=min(ours),
        prefill_high_s=max(ours),
        speedup=statistics.median(full) / statistics.median(ours),
        speedup_low=min(single),
        speedup_high=max(single),
        kv_bytes=timed[setting][-1].kv_bytes,
    )


def doubt(rows: Sequence[DemoRow]) -> str | None:
    """A warning about times that other work on the machine disturbed; ``None``: they are steady."""
    noisy = [row for row in rows if row.is_noise]
    if not noisy:
        return None
    worst = max(noisy, key=lambda row: row.speedup_high / row.speedup_low)
    return (
        f"the speed-ups mean nothing: {worst.setting} was {worst.speedup_low:.2f}x to"
        f" {worst.speedup_high:.2f}x from round to round, so other work on this machine decided"
        " them; run the demo again when it is idle"
    )
