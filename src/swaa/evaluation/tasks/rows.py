"""Rows of a local file in one of the formats of benchmarks; errors name file and line."""

from __future__ import annotations

import dataclasses
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample
from swaa.files import checksum

FORMATS = (".jsonl", ".json", ".parquet")

HUB = "hf://"
"""Prefix for a file of a data set on the hub: ``hf://OWNER/DATASET/FILE``."""


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        file: name of its file, without folders.
        number: line of a ``.jsonl``, otherwise the row, from 1.
        values: its columns.
    """

    file: str
    number: int
    values: Mapping[str, Any]

    def error(self, reason: str) -> ValueError:
        """An error that names file and line."""
        what = "line" if self.file.endswith(".jsonl") else "row"
        return ValueError(f"{self.file}, {what} {self.number}: {reason}")

    def max_new_tokens(self, default: int) -> int:
        """The longest answer that the row allows (tokens); ``ValueError`` for no such number."""
        most = self.values.get("max_new_tokens", default)
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise self.error(f"'max_new_tokens' is {most!r}; expected a whole number of at least 1")
        return most

    def text(self, *names: str, default: str | None = None) -> str:
        """The text in the first of these columns that exists; numbers as text.

        Raises:
            ValueError: naming file, line and columns, when none exists or it is not text.
        """
        for name in names:
            value = self.values.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return str(value)
            if value is not None and not isinstance(value, str):
                raise self.error(f"column {name!r} is a {type(value).__name__}; expected text")
            if value is not None:
                return value
        if default is not None:
            return default
        there = ", ".join(map(str, self.values)) or "none"
        raise self.error(
            f"there is no column {' or '.join(map(repr, names))}; the columns are {there}"
        )


@dataclass(frozen=True)
class DataFile:
    """A local file of rows."""

    path: Path

    @classmethod
    def find(cls, task: str, argument: str | None) -> DataFile:
        """The file named after a task's colon: a local one, or one from a data set on the hub.

        Raises:
            ValueError: when none is named, or its format is not known.
            FileNotFoundError: when it does not exist, or cannot be downloaded.
        """
        if argument is None:
            raise ValueError(
                f"{task} reads a file; name it: {task}:FILE{FORMATS[0]}, or"
                f" {task}:{HUB}OWNER/DATASET/FILE{FORMATS[0]}"
            )
        path = Path(argument).expanduser()
        if path.suffix not in FORMATS:
            raise ValueError(f"{argument}: expected a file that ends in {', '.join(FORMATS)}")
        if argument.startswith(HUB):
            return cls(_download(argument))
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {argument}")
        return cls(path)

    def describe(self) -> dict[str, Any]:
        """Name and checksum."""
        return {"data": self.path.name, "data_revision": checksum([self.path])}

    def rows(self) -> Iterator[Row]:
        """All rows.

        Raises:
            ValueError: naming file and line, for anything that is not a row.
            ImportError: for a parquet file without the package that reads it.
        """
        read = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}[self.path.suffix]
        for number, values in read(self.path):
            row = Row(self.path.name, number, values if isinstance(values, dict) else {})
            if not isinstance(values, dict):
                raise row.error(f"expected a JSON object with named columns, got {values!r:.60}")
            yield row


@dataclass(frozen=True)
class FileTask(ABC):
    """A task whose questions are the rows of a file.

    Attributes:
        file: what is read.
        kind: the task's name, before its file's.
        version: of questions and scorer; another one keeps results apart.
    """

    file: DataFile
    kind: ClassVar[str]
    version: ClassVar[int] = 1
    needs_length = False
    needs_judge = False

    @property
    def name(self) -> str:
        """The task and its file."""
        return f"{self.kind}:{self.file.path.name}"

    def describe(self) -> dict[str, Any]:
        """What distinguishes runs of the task."""
        return {"task": self.kind, "version": self.version, **self.file.describe()}

    def samples(
        self, prompt: Prompt, *, length: int | None, count: int | None, seed: int
    ) -> list[Sample]:
        """The first ``count`` rows whose prompts have at most ``length`` tokens, in order.

        Raises:
            ValueError: naming file and line, for a row that is not a sample, or repeats an id.
        """
        samples: list[Sample] = []
        seen: set[str] = set()
        for row in self.file.rows():
            if count is not None and len(samples) >= count:
                break
            sample = self.sample(row, seed)
            if sample.id in seen:
                raise row.error(f"a row before it has the same id, {sample.id!r}")
            seen.add(sample.id)
            tokens = prompt.count(sample.context, sample.question, sample.answer_prefix)
            if length is None or tokens <= length:
                samples.append(dataclasses.replace(sample, length=tokens))
        return samples

    @abstractmethod
    def sample(self, row: Row, seed: int) -> Sample:
        """The question of a row, without its length."""


def _download(address: str) -> Path:
    """A file from the hub, kept in its cache."""
    owner, _, rest = address.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise ValueError(f"{address}: expected {HUB}OWNER/DATASET/FILE")
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"cannot have {address}: {reason:.200}; check the name, or download it and name the"
            " file"
        ) from None


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _parse(path, f"line {number}", line)


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    values = _parse(path, "the file", path.read_bytes())
    if not isinstance(values, list):
        raise ValueError(f"{path.name}: expected a list of rows, got a {type(values).__name__}")
    yield from enumerate(values, 1)


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ImportError("reading parquet files needs pyarrow; run: pip install pyarrow") from None
    number = 0
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=16):
        for values in batch.to_pylist():
            number += 1
            yield number, values


def _parse(path: Path, where: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:  # bad JSON, or not UTF-8
        raise ValueError(
            f"{path.name}, {where} is not JSON: {error}; correct it or take it out"
        ) from None
