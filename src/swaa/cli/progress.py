"""Progress with the time left, on stderr: tqdm's bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

_LINES = 10
_BAR = "{desc} [{bar:24}] {percentage:.0f} %, {remaining} left"
_LOOK: dict[str, Any] = {"bar_format": _BAR, "ascii": ".#"}


class ProgressBar:
    """One line that is redrawn; without a terminal, a new line after every tenth of the work.

    Args:
        total: units of work.
        label: what is going on.
        stream: where to draw; default: stderr.
    """

    def __init__(self, total: float, label: str, *, stream: TextIO | None = None) -> None:
        self._total = total
        self._label = label
        self._stream = stream or sys.stderr
        self._started = time.perf_counter()
        self._shown = 0
        off = not self._stream.isatty()
        self._bar = tqdm(
            total=total, desc=label, file=self._stream, leave=False, disable=off, **_LOOK
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.write(line, file=self._stream)

    def update(self, done: float, label: str | None = None) -> None:
        """Show that ``done`` of the total is done, and what comes next."""
        self._label = label or self._label
        done = min(done, self._total)
        if not self._bar.disable:
            self._bar.n = done
            self._bar.set_description_str(self._label)
            return
        tenths = int(_LINES * done / self._total) if self._total else _LINES
        if tenths > self._shown:  # otherwise a log would get a line for every update
            self._shown = tenths
            elapsed = time.perf_counter() - self._started
            self.say(tqdm.format_meter(done, self._total, elapsed, prefix=self._label, **_LOOK))


def format_seconds(seconds: float) -> str:
    """Seconds for people: ``45 s`` or ``2 min 05 s``."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
