"""The one schema of result files: ``results/<kind>/<name>-<hash8>.json``, with provenance.

The hash depends on what was run, not on when: the same run has the same file, so a finished one is
found (:func:`find`) and skipped. Samples may lie next to it, one JSON object per line, appended
while the run goes on; samples without a result are an interrupted run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from swaa import __version__
from swaa.redaction import is_secret_value

SCHEMA = 1
"""Version of the file format; a newer one is refused."""

FOLDER = "results"
"""Folder of the results, relative to the working directory."""

VERDICTS = ".judge.jsonl"
"""Ending of the file next to a result that holds a judge's verdicts on its samples."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_KEYS = ("schema", "kind", "name", "provenance", "config", "rows")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where numbers come from. ``None``: unknown, or not applicable.

    Attributes:
        swaa: version of this package.
        commit: of the checkout that swaa was imported from.
        dirty: whether tracked files under ``src`` differed from that commit.
        versions: of Python and of the packages that matter; ``None``: not installed.
        device: name of the GPU or CPU, not of the machine.
        dtype: of the weights and activations, such as ``bfloat16``.
        model: name of the model, with its quantisation where it has one.
        model_revision: commit or checksum of the weights.
        data: name of the data.
        data_revision: commit or checksum of the data.
        seed: of everything random.
        seconds: wall time of the run.
        created: time of writing, UTC, ISO 8601.
    """

    swaa: str
    commit: str | None
    dirty: bool | None
    versions: Mapping[str, str | None]
    device: str
    dtype: str | None
    model: str | None
    model_revision: str | None
    data: str | None
    data_revision: str | None
    seed: int | None
    seconds: float | None
    created: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run: what was asked, what came out, and its provenance.

    Attributes:
        kind: folder, such as ``demo`` or ``kernels``.
        name: name within the kind: lower-case letters, digits, ``.``, ``_``, ``-``.
        config: everything that distinguishes this run: settings, model, lengths, seed.
        rows: measured values, one mapping of JSON values per row.
        provenance: see :func:`record_provenance`.

    Raises:
        TypeError: when ``config`` or ``rows`` hold what JSON cannot.
        ValueError: for an unusable name, NaN, or a path of this machine or a secret in ``config``.
    """

    kind: str
    name: str
    config: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        result_hash(self.kind, self.name, self.config)
        _check_published(dataclasses.asdict(self.provenance), "provenance")
        # As JSON returns them, so that a loaded result equals the saved one.
        object.__setattr__(self, "config", _as_json(self.config, "config"))
        object.__setattr__(self, "rows", tuple(_as_json(list(self.rows), "rows")))

    def to_dict(self) -> dict[str, Any]:
        """The file's content."""
        content = {"schema": SCHEMA, **dataclasses.asdict(self)}
        return {key: content[key] for key in _KEYS}


def result_hash(kind: str, name: str, config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a run, the same at any time and on any machine.

    Raises:
        TypeError: when ``config`` holds what JSON cannot.
        ValueError: for an unusable kind or name, NaN, or a path of this machine or a secret in
            ``config``.
    """
    for what, word in (("kind", kind), ("name", name)):
        if not _NAME.fullmatch(word):
            raise ValueError(f"{what} is {word!r}; use lower-case letters, digits, '.', '_', '-'")
    _check_published(config, "config")
    content = _as_json({"kind": kind, "name": name, "config": config}, "config")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def result_path(
    kind: str, name: str, config: Mapping[str, Any], *, folder: str | Path = FOLDER
) -> Path:
    """The file of a run, whether or not it exists; its samples are in the ``.jsonl`` next to it."""
    return Path(folder) / kind / f"{name}-{result_hash(kind, name, config)}.json"


def find(
    kind: str, name: str, config: Mapping[str, Any], *, folder: str | Path = FOLDER
) -> Result | None:
    """The result of a finished run, or ``None`` when it is still to be done.

    Raises:
        ValueError: for a file that exists but cannot be read as a result.
    """
    path = result_path(kind, name, config, folder=folder)
    return load(path) if path.exists() else None


def save(
    result: Result,
    *,
    samples: Iterable[Mapping[str, Any]] | None = None,
    folder: str | Path = FOLDER,
) -> Path:
    """Write a result, whole or not at all, and return its path.

    Args:
        result: the finished run.
        samples: single answers or timings, written before the result to the ``.jsonl`` next to it;
            ``None`` leaves existing samples.
        folder: of all results.
    """
    path = result_path(result.kind, result.name, result.config, folder=folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if samples is not None:
        lines = [json.dumps(_as_json(sample, "samples")) + "\n" for sample in samples]
        write_whole(path.with_suffix(".jsonl"), "".join(lines))
    write_whole(path, json.dumps(result.to_dict(), indent=2) + "\n")
    return path


def write_whole(path: Path, text: str) -> None:
    """Write a temporary file, then rename it: readers see the old or the new file, never half.

    Raises:
        OSError: naming the file; the old one stays.
    """
    try:
        # Not by tempfile, whose files are private: the umask says who may read results.
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with beside.open("x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                beside.unlink()
                raise
        beside.replace(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path}: {error.strerror or error}; make room, or write elsewhere, and"
            " run the same command again",
        ) from None


def load(path: str | Path) -> Result:
    """Read a result.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that is not a result, is of a newer schema, or whose name does not
            carry the hash of its content.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or set(content) != set(_KEYS):
        raise ValueError(f"{path} is not a result file; expected the keys {', '.join(_KEYS)}")
    if content["schema"] != SCHEMA:
        raise ValueError(
            f"{path} has schema {content['schema']!r}; this swaa reads {SCHEMA}: upgrade swaa"
        )
    try:
        provenance = Provenance(**content["provenance"])
        result = Result(
            kind=content["kind"],
            name=content["name"],
            config=content["config"],
            rows=tuple(content["rows"]),
            provenance=provenance,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a result file: {error}") from None
    expected = result_hash(result.kind, result.name, result.config)
    if path.stem != f"{result.name}-{expected}":
        raise ValueError(
            f"{path} was renamed or edited: its content belongs in {result.name}-{expected}.json"
        )
    return result


def read_samples(path: str | Path) -> list[dict[str, Any]]:
    """The samples next to the result file ``path``, without a line torn by an interruption."""
    beside = Path(path).with_suffix(".jsonl")
    samples = []
    for line in beside.read_text(encoding="utf-8").splitlines() if beside.exists() else ():
        try:
            samples.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return samples


def record_provenance(
    *,
    device: str = "cpu",
    dtype: object = None,
    model: str | None = None,
    model_revision: str | None = None,
    data: str | None = None,
    data_revision: str | None = None,
    seed: int | None = None,
    seconds: float | None = None,
    packages: Iterable[str] = (),
) -> Provenance:
    """Record what is known about a run: what the caller says, versions, commit, device and time.

    Args:
        device: as torch writes it: ``cpu``, ``cuda``, ``cuda:1``; the chip's name is recorded.
        dtype: ``torch.bfloat16`` or its name.
        model: name, not a path; likewise ``data``.
        model_revision: commit or checksum of the weights.
        data: name of the data.
        data_revision: commit or checksum of the data.
        seed: of everything random.
        seconds: wall time of the run.
        packages: more packages whose versions matter, such as ``vllm``.
    """
    commit, dirty = _checkout()
    names = ("torch", "transformers", "triton", *packages)
    return Provenance(
        swaa=__version__,
        commit=commit,
        dirty=dirty,
        versions={
            "python": platform.python_version(),
            **{name: _version(name) for name in names},
        },
        device=_device_name(device),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        model=model,
        model_revision=model_revision,
        data=data,
        data_revision=data_revision,
        seed=seed,
        seconds=None if seconds is None else round(seconds, 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _as_json(value: Any, name: str) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=_mapping))
    except TypeError as error:
        raise TypeError(f"{name} must hold JSON values only: {error}") from None
    except ValueError:
        raise ValueError(f"{name} holds NaN or infinity; write None for a missing value") from None


def _mapping(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r:.60} is a {type(value).__name__}")


def _check_published(value: object, name: str) -> None:
    # Results are published: a path tells where somebody's files are and helps nobody else.
    if isinstance(value, str):
        if is_secret_value(value):
            raise ValueError(f"{name} holds what looks like a secret; results are published")
        if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute():
            raise ValueError(f"{name} holds the path {value!r}; results hold names, not paths")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_published(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_published(item, name)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _checkout() -> tuple[str | None, bool | None]:
    """Commit of the checkout this file is part of, and whether its sources were changed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "src")
    return commit, None if changes is None else bool(changes)


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _device_name(device: str) -> str:
    if device.partition(":")[0] != "cpu":
        import torch

        kind = torch.device(device).type
        return torch.cuda.get_device_name(device) if kind == "cuda" else kind
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {cores} cores"
