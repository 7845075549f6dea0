"""What a run adds to the report's figures: answers with their price, and values over length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from swaa.config import SWAAConfig

Unit = Literal["s", "B", "tok/s", "tok/GiB", "share"]
"""Seconds, bytes, tokens a second, tokens that a GiB of cache holds, or a share of one."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How often one setting was right, and what it took: one point of accuracy against cost.

    Attributes:
        group: only points of the same group may be compared: same model, task, samples and machine.
        setting: its name.
        detail: what the setting does.
        accuracy: share of right answers, 0 to 1.
        low: lower bound of its 95 % interval; ``None``: unknown.
        high: upper bound.
        score: mean score, 0 to 1, for tasks that score parts of an answer; ``None``: other tasks.
        count: ``8 of 8``, or whatever else the share is computed from.
        samples: prompts that were asked; 0: not counted.
        seconds: the time that ``time`` names; ``None``: not measured, or the machine was shared.
        seconds_low: 20th percentile; ``None``: measured once.
        seconds_high: 80th percentile.
        time: which time ``seconds`` is.
        kv_bytes: bytes of keys and values held after the prompt; ``None``: not measured.
        kv_share: share of full attention's bytes, computed; ``None``: not known.
        flops_share: share of full attention's prefill FLOPs, computed; ``None``: not known.
        keys_share: share of the keys that full attention's queries visit in the prompt, computed;
            ``None``: not known.
        full: whether this is full attention, which the others are measured against.
        trained: whether the model was trained for the setting.
    """

    group: str
    setting: str
    detail: str
    accuracy: float
    low: float | None = None
    high: float | None = None
    score: float | None = None
    count: str
    samples: int = 0
    seconds: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    time: str = "not timed"
    kv_bytes: int | None = None
    kv_share: float | None = None
    flops_share: float | None = None
    keys_share: float | None = None
    full: bool = False
    trained: bool = False


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One value at one length: a point of speed, or of memory, against length.

    Attributes:
        chart: where it is drawn.
        measure: what was measured.
        unit: of the value.
        group: only series of the same group may be compared: same model, batch, dtype and machine.
        series: setting, or kernel and mask.
        tokens: of the prompt, or keys of a decoding step.
        value: median.
        low: 20th percentile; ``None``: not measured.
        high: 80th percentile.
        ours: whether swaa's code was measured.
        full: whether full attention was measured, which the others are measured against.
        more_is_better: true for rates, false for times and bytes.
        note: how close the value is to the hardware's limit.
    """

    chart: Literal["speed", "memory"]
    measure: str
    unit: Unit
    group: str
    series: str
    tokens: int
    value: float
    low: float | None = None
    high: float | None = None
    ours: bool = True
    full: bool = False
    more_is_better: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Right answers of one model in one task: a bar that shows the effect of training.

    Attributes:
        recipe: the one that the model was trained for.
        task: what was asked.
        state: which model: under full attention or the recipe, before or after training.
        right: right answers.
        samples: prompts asked.
        low: lower bound of the share's 95 % interval, 0 to 1.
        high: upper bound.
    """

    recipe: str
    task: str
    state: str
    right: int
    samples: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything that one run shows.

    Attributes:
        subject: the model or the kernels that were measured.
        setting: the recipe, or how many.
        task: what was asked or timed.
        tokens: lengths, in tokens.
        outcome: the run in a few words.
        answers: points of accuracy against cost.
        measurements: points against length.
        trainings: bars that show the effect of training.
        configs: the configurations measured, by name, for the mask explorer.
    """

    subject: str
    setting: str = ""
    task: str = ""
    tokens: tuple[int, ...] = ()
    outcome: str = ""
    answers: tuple[Answers, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    trainings: tuple[Trained, ...] = ()
    configs: Mapping[str, SWAAConfig] = field(default_factory=dict)


def model_name(name: str) -> str:
    """A model's name on the page: the name in results, without its file's ``.gguf``."""
    return name.removesuffix(".gguf")
