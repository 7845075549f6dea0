"""The processes of one `accelerate launch`: the first one gives orders, all of them act."""

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
"""How long the others wait for the first one, which makes prompts or asks a judge.

It may be long: the launcher notices processes that died.
"""

_EXPECTED = (ValueError, TypeError, OSError, ImportError)
"""Errors whose message is enough; others are shown with a traceback."""


class TeamError(ChildProcessError):
    """Another process failed or ended."""


def process_count() -> int:
    """How many processes were started to run this command together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def is_first() -> bool:
    """Whether this process gives the orders, or is the only one."""
    return process_count() == 1 or os.environ.get("RANK") == "0"


class Order(NamedTuple):
    """What every process is to do next.

    Attributes:
        name: name of a method that takes one argument.
        parts: that argument for each process.
    """

    name: str
    parts: Sequence[Any] = ()


class Team:
    """The processes, which take every step together; each of them makes its own ``Team``.

    Args:
        device: ``cpu``, or ``auto``: a GPU for each, where there is one.

    Attributes:
        count: number of processes.
        device: this process's device.
    """

    def __init__(self, device: str) -> None:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
        from torch.cuda import is_available

        wanted = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
        cpu = wanted or not is_available()
        # Only objects are exchanged, through CPU memory: nobody waits in a kernel on a GPU.
        self._state = PartialState(cpu=cpu, backend="gloo", timeout=_PATIENCE)
        self.count: int = self._state.num_processes
        self.device = str(self._state.device)
        # Whether the others wait for the first one's next order.
        self._in_step = True

    def together(self, act: Callable[[], Any]) -> list[Any]:
        """Act in every process.

        Returns:
            What all processes returned; every process gets the same list.

        Raises:
            TeamError: when another process failed or ended. The first process raises its own error
                unchanged. No more orders follow.
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
        """Called by the first process: let each actor do its part; see :meth:`together`."""
        return self._do(self._hear(Order(name, parts)), actor)

    def obey(self, actor: object) -> None:
        """Called by the other processes: carry out orders until there are no more."""
        while (order := self._hear(None)).name != _LEAVE:
            self._do(order, actor)
        self._state.destroy_process_group()

    def dismiss(self) -> None:
        """Called by the first process: no more orders. After a failed step the others know."""
        if self._in_step:
            with contextlib.suppress(TeamError):  # a process that has ended needs no order
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
        if not self._state.is_main_process:  # only this process has the traceback
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
