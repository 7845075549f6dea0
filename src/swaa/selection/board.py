"""Scores of candidates: measured once, remembered in a file, whoever asks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from swaa.config import LayerPlan
from swaa.files import SamplesFile
from swaa.selection.batches import Scores
from swaa.selection.candidate import Candidate, Role, Unit
from swaa.selection.passes import SharedPasses

Objective = Literal["nll", "kl"]
"""What a search minimises: the answers' negative log-likelihood, or the divergence from full."""

SHORT = 0.25
"""About the cost of a pass over last rows and answers, relative to whole prompts (on a GPU)."""

FULL = "full"
"""Key of full attention, which is not a candidate."""


@dataclass
class Board:
    """Asks :class:`SharedPasses` for scores not known yet, and records them.

    Attributes:
        passes: already entered; measures.
        file: already entered; one line per candidate, so that an interrupted search resumes.
        objective: what :meth:`value` reads.
        on_pass: called after each candidate measured, with its cost: 1 for a pass over whole
            prompts, else :data:`SHORT`.
        screen: if above 0, full layers are full only in this many last prompt rows.
        asked: candidates asked for so far.
    """

    passes: SharedPasses
    file: SamplesFile
    objective: Objective = "nll"
    on_pass: Callable[[float], None] | None = None
    screen: int = 0
    asked: list[Candidate] = field(default_factory=list)
    _known: dict[str, Scores] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for record in self.file.samples:
            self._known[record["id"]] = Scores(record["nll"], record["kl"], record["exact"])

    @property
    def able(self) -> tuple[int, ...]:
        """Layers that can slide."""
        return self.passes.able

    @functools.cached_property
    def kv_heads(self) -> list[int]:
        """KV heads of each layer of the model."""
        return self.passes.kv_heads

    def units(self, role: Role) -> tuple[Unit, ...]:
        """What may be given a role: the layers that can slide, or their KV heads."""
        if role != "heads":
            return self.able
        return tuple((layer, head) for layer in self.able for head in range(self.kv_heads[layer]))

    def value(self, candidate: Candidate) -> float:
        """The mean objective of a candidate that was asked for before (nats per token)."""
        return mean(getattr(self.scores(candidate), self.objective))

    def scores(self, candidate: Candidate) -> Scores:
        """All scores of a candidate that was asked for before."""
        return self._known[self._key(candidate)]

    def screening(self, rows: int) -> Board:
        """Another board with the same passes and file, which screens."""
        beside = replace(self, screen=rows, asked=[])
        beside._known = self._known
        return beside

    def full_scores(self) -> Scores:
        """Scores of full attention."""
        plans = (LayerPlan(window=None),) * self.passes.depth
        if FULL not in self._known:
            (scores,) = self.passes.measure(plans, [plans], kl=True)
            self._record(FULL, scores, {})
        return self._known[FULL]

    def ask(self, candidates: Iterable[Candidate], *, near: Candidate) -> list[Candidate]:
        """Make sure that candidates are measured.

        Args:
            candidates: sets of layers, each measured as a set.
            near: a candidate a few steps away from them; its passes are shared.

        Returns:
            The candidates, best first; equal ones in the order given.
        """
        wanted = list(dict.fromkeys(candidates))
        self.asked += wanted
        missing = self.missing(wanted)
        if missing:
            found = self.passes.measure(
                self._plans(near), [self._plans(c) for c in missing], kl=True
            )
            for candidate, scores in zip(missing, found, strict=True):
                self._record(self._key(candidate), scores, _describe(candidate))
                if self.on_pass is not None:
                    self.on_pass(self.price(candidate))
        return sorted(wanted, key=self.value)

    def missing(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """The candidates that are not measured yet."""
        return [c for c in candidates if self._key(c) not in self._known]

    def price(self, candidate: Candidate) -> float:
        """The cost of measuring a candidate: 1 for passing whole prompts, else :data:`SHORT`."""
        return SHORT if self.screen or not candidate.full else 1

    def _plans(self, candidate: Candidate) -> tuple[LayerPlan, ...]:
        if self.screen:
            return candidate.screening_plans(
                self.able, self.passes.depth, self.screen, self.kv_heads
            )
        return candidate.plans(self.able, self.passes.depth, self.kv_heads)

    def _key(self, candidate: Candidate) -> str:
        screened = self.screen and candidate.full
        return f"{candidate.key}-{self.screen}" if screened else candidate.key

    def _record(self, key: str, scores: Scores, what: dict[str, Any]) -> None:
        rounded = Scores(_rounded(scores.nll), _rounded(scores.kl), scores.exact)
        self._known[key] = rounded
        self.file.append({"id": key, **what, **rounded._asdict()})


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def _rounded(values: Sequence[float]) -> list[float]:
    # Rounded as in the file, so that a resumed search makes the same choices.
    return [round(value, 6) for value in values]


def _describe(candidate: Candidate) -> dict[str, Any]:
    return {
        "window": candidate.window,
        "sink_tokens": candidate.sink_tokens,
        "dense_tail": candidate.dense_tail,
        "full": sorted(candidate.full),
        "decode": sorted(candidate.decode),
        **({"heads": sorted(map(list, candidate.heads))} if candidate.heads else {}),
    }
