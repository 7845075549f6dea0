"""The processes of one `accelerate launch`: the first one orders, all of them act."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

_LEAVE = "leave"
_PATIENCE = timedelta(days=30)
"""The others wait while the first makes prompts or asks a judge; the launcher notices the dead."""

_EXPECTED = (ValueError, TypeError, OSError, ImportError)
"""Errors whose message says all."""


class TeamError(ChildProcessError):
    """Another process failed, or is gone."""


def process_count() -> int:
    """How many processes were started to run this command together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def is_first() -> bool:
    """Whether this process orders, or is the only one."""
    return process_count() == 1 or os.environ.get("RANK") == "0"


class Order(NamedTuple):
    """What every process is to do next.

    Attributes:
        name: of a method, called with one argument.
        parts: that argument, for each process.
    """

    name: str
    parts: Sequence[Any] = ()


class Team:
    """The processes, which take every step together; made in each of them.

    Args:
        device: ``cpu``, or ``auto``: a GPU for each, where there is one.

    Attributes:
        count: of processes.
        device: this one's.
    """

    def __init__(self, device: str) -> None:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
        from torch.cuda import is_available

        wanted = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
        cpu = wanted or not is_available()
        # Only objects travel, through CPU memory: nobody waits in a kernel on a GPU.
        self._state = PartialState(cpu=cpu, backend="gloo", timeout=_PATIENCE)
        self.count: int = self._state.num_processes
        self.device = str(self._state.device)
        # Whether the others wait for the first one's next order.
        self._in_step = True

    def together(self, act: Callable[[], Any]) -> list[Any]:
        """Act in every process.

        Returns:
            In each process what all of them returned.

        Raises:
            TeamError: when another process failed, or is gone; in the first one its own error is
                raised as it is. There are no more orders then.
        """
        from accelerate.utils import gather_object

        self._in_step = False
        value, failed = None, None
        try:
            value = act()
        except Exception as error:
            failed = error
        mine = (value, None if failed is None else self._describe(failed))
        everyone = _talk(lambda: gather_object([mine]))
        for process, (_, reason) in enumerate(everyone):
            if reason is not None:
                if failed is not None and process == 0 and self._state.is_main_process:
                    raise failed
                raise TeamError(f"process {process} of {self.count}: {reason}")
        self._in_step = True
        return [result for result, _ in everyone]

    def order(self, name: str, parts: Sequence[Any], actor: object) -> list[Any]:
        """Of the first process: let each one's actor do its part; see :meth:`together`."""
        return self._do(self._hear(Order(name, parts)), actor)

    def obey(self, actor: object) -> None:
        """Of the others: do what is ordered until there is no more."""
        while (order := self._hear(None)).name != _LEAVE:
            self._do(order, actor)
        self._state.destroy_process_group()

    def dismiss(self) -> None:
        """Of the first process: no more orders. Where a step failed, the others know already."""
        if self._in_step:
            with contextlib.suppress(TeamError):  # one that is gone is missed no more
                self._hear(Order(_LEAVE))
            self._state.destroy_process_group()

    def _do(self, order: Order, actor: object) -> list[Any]:
        part = order.parts[self._state.process_index]
        return self.together(lambda: getattr(actor, order.name)(part))

    def _hear(self, order: Order | None) -> Order:
        from accelerate.utils import broadcast_object_list

        self._in_step = False
        return _talk(lambda: broadcast_object_list([order]))[0]

    def _describe(self, error: Exception) -> str:
        if isinstance(error, _EXPECTED):
            return str(error) or type(error).__name__
        if not self._state.is_main_process:  # only here is it known where it arose
            traceback.print_exception(error, file=sys.stderr)
        return f"{type(error).__name__}: {error}"


def _talk(call: Callable[[], list[Any]]) -> list[Any]:
    try:
        return call()
    except RuntimeError as error:
        raise TeamError(
            "another process of this run is gone; run the same command again, it keeps the samples"
            f" that are done ({error})"
        ) from error
