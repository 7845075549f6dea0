"""What is trained, and how: one frozen object, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Objective = Literal["sft", "kl", "sft+kl"]
"""What is minimised: the answers' negative log-likelihood, the divergence from full attention,
or their sum."""

Tracker = Literal["none", "trackio", "wandb", "tensorboard"]

OBJECTIVES: tuple[str, ...] = get_args(Objective)
TRACKERS: tuple[str, ...] = get_args(Tracker)

TARGETS = ("q_proj", "k_proj", "v_proj")
"""The paper's targets (arXiv 2512.10411, section 4.3), with a scale of alpha / rank = 8."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything about a training except model, recipe and data.

    The defaults are the paper's (arXiv 2512.10411) where it states them.

    Attributes:
        objective: ``sft``, ``kl`` or ``sft+kl``.
        rank: of the adapter.
        alpha: the adapter's output is scaled by ``alpha / rank``.
        dropout: of the adapter's input while training.
        targets: modules that get an adapter, by the end of their names.
        learning_rate: the highest rate.
        schedule: how the rate falls: ``cosine``, ``linear`` or ``constant``.
        warmup: share of the steps in which the rate rises.
        epochs: passes over the data.
        max_steps: upper limit of steps; ``None``: all epochs.
        batch_size: conversations per forward pass and process.
        accumulate: forward passes per step.
        max_length: most tokens of a conversation; with packing: of a pack.
        packing: put several conversations into one row, each of which attends only to itself.
        group_by_length: conversations of similar lengths together, so that little is padding.
        checkpointing: recompute activations in the backward pass instead of keeping them.
        save_every: steps between checkpoints that training resumes from; ``None``: none.
        clip: largest norm of the gradients.
        seed: of adapters, order and dropout.
        tracker: an experiment tracker that also gets the curve.

    Raises:
        ValueError: naming the setting, for a value out of range.
    """

    objective: str = "sft"
    rank: int = 16
    alpha: int = 128
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    warmup: float = 0.05
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 1
    accumulate: int = 8
    max_length: int = 32_768
    packing: bool = False
    group_by_length: bool = False
    checkpointing: bool = True
    save_every: int | None = None
    clip: float = 1.0
    seed: int = 0
    tracker: str = "none"

    def __post_init__(self) -> None:
        _one_of("objective", self.objective, OBJECTIVES)
        _one_of("tracker", self.tracker, TRACKERS)
        _one_of("schedule", self.schedule, ("cosine", "linear", "constant"))
        for name in ("rank", "alpha", "batch_size", "accumulate", "max_length"):
            _at_least_one(name, getattr(self, name))
        for name in ("max_steps", "save_every"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        for name in ("learning_rate", "epochs", "clip"):
            if not 0 < getattr(self, name) < math.inf:  # also refuses nan
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a finite number above 0"
                )
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0, below 1")
        if not self.targets or not all(self.targets):
            raise ValueError("targets is empty; name modules such as q_proj")
        if self.packing and self.group_by_length:
            raise ValueError("packing and group_by_length exclude each other: packs are full")

    @property
    def teaches(self) -> bool:
        """Whether full attention is a teacher."""
        return self.objective != "sft"


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def _at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")
