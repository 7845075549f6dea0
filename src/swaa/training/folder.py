"""The folder of a training: what is done in it, what is left to do, and one training at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from swaa.processes import is_first

RECORD = "training.json"
"""The arguments of the training; once the steps are done, also their number and duration."""

CURVE = "loss.jsonl"
ADAPTER = "adapter"
MERGED = "merged"
CHECKPOINTS = "checkpoints"

RECIPE_FILE = "swaa.json"
"""The recipe alone, for ``--recipe`` and ``--recipes``; config.json holds it too.

It is the last file written of an adapter and of a merged checkpoint: a folder without it is
incomplete.
"""

LOCK = ".lock"

Left = Literal["training", "merging"]
"""What is left to do in a folder."""


def left_to_do(out: Path, record: Mapping[str, Any], *, resume: bool, merges: bool) -> Left:
    """What a command has to do in a folder; anything of value there is never overwritten.

    Args:
        out: the folder; it need not exist.
        record: the arguments, in the form of :data:`RECORD`.
        resume: whether to continue what is there.
        merges: whether a merged checkpoint is wanted.

    Raises:
        ValueError: for a folder whose training is finished, can only be resumed, or had other
            arguments; for one with other files.
        FileNotFoundError: when there is nothing to resume from.
    """
    path = out / RECORD
    known = json.loads(path.read_text("utf-8")) if path.is_file() else None
    if known is not None and ("steps" in known or _is_trained(out)):
        if not (merges and _is_trained(out)) or is_whole(out / MERGED):
            raise ValueError(f"the training in {out} is finished; choose another folder with --out")
        if not resume:
            raise ValueError(
                f"the training in {out} is finished, but not merged; use --resume to merge it, or"
                " choose another folder with --out"
            )
        _require_same(out, record, known)
        return "merging"
    if resume:
        if last_checkpoint(out) is None:
            raise FileNotFoundError(
                f"{out} holds no checkpoint to resume from; train without --resume, with"
                " --save-every"
            )
        _require_same(out, record, known)
    elif known is None:
        _require_empty(out)
    elif last_checkpoint(out) is not None:
        raise ValueError(
            f"{out} holds an interrupted training; use --resume to continue it, or choose another"
            " folder with --out"
        )
    return "training"  # a record here is of a training that saved nothing: begin again


def last_checkpoint(out: Path) -> Path | None:
    """The last complete checkpoint: its last file is there."""
    whole = [state.parent for state in (out / CHECKPOINTS).glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def is_whole(folder: Path) -> bool:
    """Whether an adapter or a merged checkpoint is complete."""
    return (folder / RECIPE_FILE).is_file()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, renamed when complete, so that nobody reads half a checkpoint."""
    beside = folder.with_name(f"{folder.name}.partial")
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir(parents=True)
    yield beside
    if folder.exists():  # incomplete, as earlier versions could leave it
        shutil.rmtree(folder)
    beside.rename(folder)


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """Keep other trainings out of a folder; among a training's processes the first does it.

    Raises:
        ValueError: when another training runs there, or the folder is a file.
    """
    if not is_first():
        yield
        return
    _require_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK
    with path.open("a") as file:
        if not _locks(file.fileno(), path):
            raise ValueError(
                f"another process is training in {out}; wait for it, or name another folder by"
                " --out"
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def require_free(out: Path) -> None:
    """Find out early whether another training runs in a folder, which need not exist.

    Raises:
        ValueError: when it does.
    """
    if (out / LOCK).exists():
        with hold(out):
            pass


def _locks(descriptor: int, path: Path) -> bool:
    """Whether we hold the lock; the system releases it however the process ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A process that has just ended may have removed the file between opening and locking.
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        # Some clusters' file systems have no locks; two trainings at once go unnoticed there.
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            return True
        raise


def _is_trained(out: Path) -> bool:
    """Whether all steps are done and kept; the curve is written before the adapter."""
    return (out / CURVE).is_file() and is_whole(out / ADAPTER)


def _require_same(out: Path, record: Mapping[str, Any], known: Mapping[str, Any] | None) -> None:
    changed = [key for key in record if known is not None and known.get(key) != record[key]]
    if changed:
        raise ValueError(
            f"the training in {out} was started with other {', '.join(changed)}; resume it with the"
            f" same command, see {RECORD}"
        )


def _require_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a new or empty folder by --out")


def _require_empty(out: Path) -> None:
    """Refuse a folder with files that are not this training's: none may be mixed or lost."""
    _require_folder(out)
    # A faster process, or one that failed early, may have left these.
    begun = out / CHECKPOINTS
    ours = {LOCK} | ({begun.name} if begun.is_dir() and not any(begun.iterdir()) else set())
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    others = [name for name in there if name not in ours]
    if others:
        raise ValueError(
            f"{out} holds other files ({', '.join(others[:3])}{', ...' if others[3:] else ''}) and"
            " no training; name a new or empty folder by --out"
        )
