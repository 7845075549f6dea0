"""A progress bar with the time left, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

_WIDTH = 24
_LINES = 10


class ProgressBar:
    """One line that is redrawn; where there is no terminal, a new line every tenth of the work.

    >>> with ProgressBar(3, "reading", stream=sys.stdout) as bar:
    ...     bar.update(3)
    reading [########################] 100 %

    Args:
        total: units of work.
        label: what is going on.
        stream: where to draw; default: stderr.
    """

    def __init__(self, total: float, label: str, *, stream: TextIO | None = None) -> None:
        self._total = total
        self._label = label
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._started = time.perf_counter()
        self._shown = 0 if not self._tty else -1
        self._width = 0

    def __enter__(self) -> ProgressBar:
        if self._tty:
            self.update(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clear()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._clear()
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._tty:
            # What follows starts on a clean line.
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()

    def update(self, done: float, label: str | None = None) -> None:
        """Show that ``done`` of the total is done, and what comes next."""
        self._label = label or self._label
        share = min(1.0, done / self._total) if self._total else 1.0
        if self._tty:
            line = self._line(share)
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        elif int(share * _LINES) > self._shown:
            self._shown = int(share * _LINES)
            self._stream.write(self._line(share) + "\n")
        self._stream.flush()

    def _line(self, share: float) -> str:
        filled = round(share * _WIDTH)
        bar = "#" * filled + "." * (_WIDTH - filled)
        left = ""
        if 0 < share < 1:
            seconds = (time.perf_counter() - self._started) * (1 - share) / share
            left = f", {format_seconds(seconds)} left"
        return f"{self._label} [{bar}] {share:.0%}".replace("%", " %") + left


def format_seconds(seconds: float) -> str:
    """Seconds for people: ``45 s`` or ``2 min 05 s``."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
