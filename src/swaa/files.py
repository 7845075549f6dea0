"""Files: a run's samples, which one process writes at a time, and checksums of what was read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ATTEMPTS = 5
_PART = 1 << 20
_WHOLE = 256 << 20


class SamplesFile:
    """Samples of a run that is under way; inside ``with``, no other process can write them.

    :meth:`append` returns once its line is on the disk. Killing the process loses at most the line
    being written, which is dropped when the file is opened again.

    Args:
        path: the ``.jsonl``; it need not exist.

    Raises:
        ValueError: on entering, when another process writes the run, or for a line that is not a
            JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples: list[dict[str, Any]] = []
        self._lock_path = path.with_suffix(".lock")
        self._lock = -1
        self._file = -1

    def __enter__(self) -> SamplesFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            self.samples = self._read()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def append(self, sample: dict[str, Any]) -> None:
        """Add a sample.

        Raises:
            OSError: naming the file, when it cannot be written; its earlier content stays.
        """
        line = f"{json.dumps(sample, allow_nan=False)}\n".encode()
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            done = 0
            while done < len(line):
                done += os.write(self._file, line[done:])
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, end)
            raise OSError(
                error.errno,
                f"cannot write {self.path}: {error.strerror}; make room and run the same command"
                f" again, it keeps the {len(self.samples)} samples that are done",
            ) from None
        self.samples.append(sample)

    def _read(self) -> list[dict[str, Any]]:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
        samples = []
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                sample = json.loads(line)
            except ValueError:
                sample = None
            if not isinstance(sample, dict) or not isinstance(sample.get("id"), str):
                raise ValueError(
                    f"{self.path}, line {number} is not a sample of a run; delete that line to"
                    " run it again"
                )
            samples.append(sample)
        return samples

    def _take_lock(self) -> None:
        # The system releases the lock when the process ends, however it ends.
        for _ in range(_ATTEMPTS):
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                break
            # A process that finished may have removed the file between opening and locking.
            if _same_file(lock, self._lock_path):
                self._lock = lock
                return
            os.close(lock)
        raise ValueError(
            f"another process is writing {self.path}; wait for it, or write elsewhere (--results)"
        )

    def _release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        if self._lock >= 0:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
        self._file = self._lock = -1


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def checksum(paths: Iterable[Path]) -> str:
    """Twelve hexadecimal digits that stand for files: their names, sizes and content.

    Of files beyond 256 MiB only the first and the last megabyte are read: reading all of a large
    model would take longer than loading it.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size > _WHOLE:
                digest.update(file.read(_PART))
                file.seek(-_PART, 2)
            while part := file.read(_PART):
                digest.update(part)
    return f"sha256-{digest.hexdigest()[:12]}"
