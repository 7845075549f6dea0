"""A copy of the model in each process of `accelerate launch`: the first distributes prompts.

The first process makes prompts, scores answers and writes runs, as it does alone; the others only
answer. In each round every process gets one batch, and all replies go to the first. Batches are
the same as in a single process, so that greedy answers are the same, token for token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor

from swaa.config import SWAAConfig
from swaa.evaluation.engines import Engine, Reply, Request
from swaa.evaluation.engines.transformers import TransformersEngine
from swaa.evaluation.sources import LocalModel
from swaa.processes import Team, TeamError

Load = Callable[[str], LocalModel]
"""Loads the model onto a device, given in torch's notation."""


@contextmanager
def lead(load: Load, *, device: str) -> Iterator[ReplicatedModel]:
    """In the first process: all copies as one source of engines, until the block ends.

    Args:
        load: makes a process's copy.
        device: ``cpu``, or ``auto``: a GPU for each process, where there is one.

    Raises:
        TeamError: when another process failed or ended; then all of them end.
    """
    team = Team(device)
    try:
        yield ReplicatedModel(team, _make(team, load))
    finally:
        team.dismiss()


def follow(load: Load, *, device: str) -> None:
    """In the other processes: answer what the first asks, until it ends; see :func:`lead`.

    The first process reports what goes wrong; this one ends without output.
    """
    with contextlib.suppress(TeamError, KeyboardInterrupt):
        team = Team(device)
        team.obey(_make(team, load))


class ReplicatedModel:
    """A source of engines that answer with every process's copy."""

    def __init__(self, team: Team, replica: _Replica) -> None:
        self._team = team
        self._replica = replica
        self.local = replica.model
        self.model = self.local.model
        self.revision = self.local.revision
        self.context = self.local.context
        self.device = self.local.device

    def engine(self, config: SWAAConfig) -> ReplicatedEngine:
        """An engine for a configuration."""
        return ReplicatedEngine(self._team, self._replica, config)

    def running(self, engine: Engine) -> AbstractContextManager[Engine]:
        """Adapt every copy, and restore it afterwards."""
        assert isinstance(engine, ReplicatedEngine)
        return engine

    def costs(self, config: SWAAConfig, length: int) -> Mapping[str, float] | None:
        """The costs, which are the same for every copy."""
        return self.local.costs(config, length)


class ReplicatedEngine:
    """Gives each process one batch at a time; the copies are adapted only inside ``with``."""

    def __init__(self, team: Team, replica: _Replica, config: SWAAConfig) -> None:
        self._team = team
        self._replica = replica
        self._config = config

    def __enter__(self) -> ReplicatedEngine:
        self._everywhere("adapt", [self._config] * self._team.count)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._everywhere("restore", [None] * self._team.count)

    def describe(self) -> dict[str, Any]:
        """What distinguishes runs with this engine; the number of processes does not."""
        return self._replica.model.engine(self._config).describe()

    def answer(self, batches: Sequence[Sequence[Request]]) -> Iterator[Reply]:
        """Answer all prompts; replies come in the order of the batches."""
        return self._dealt("answer", batches)

    def read(self, texts: Sequence[tuple[Sequence[int], int]]) -> Iterator[Tensor]:
        """Likelihoods, as from a model in one process."""
        return self._dealt("read", texts)

    def _dealt(self, name: str, items: Sequence[Any]) -> Iterator[Any]:
        for first in range(0, len(items), self._team.count):
            places = range(first, first + self._team.count)
            for results in self._everywhere(name, [items[at : at + 1] for at in places]):
                yield from results

    def _everywhere(self, name: str, parts: Sequence[Any]) -> list[Any]:
        return self._team.order(name, parts, self._replica)


class _Replica:
    """A process's copy of the model; the first process calls its methods in all processes."""

    def __init__(self, model: LocalModel) -> None:
        self.model = model
        self._engine: TransformersEngine | None = None

    def adapt(self, config: SWAAConfig) -> None:
        self._engine = self.model.engine(config).__enter__()

    def restore(self, _: None) -> None:
        self._running.__exit__(None, None, None)

    def answer(self, batches: Sequence[Sequence[Request]]) -> list[Reply]:
        return list(self._running.answer(batches))

    def read(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[Tensor]:
        return list(self._running.read(texts))

    @property
    def _running(self) -> TransformersEngine:
        assert self._engine is not None
        return self._engine


def _make(team: Team, load: Load) -> _Replica:
    made: list[_Replica] = []
    team.together(lambda: made.append(_Replica(load(team.device))))
    return made[0]
