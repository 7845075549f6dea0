"""Read every result file of a folder; what cannot be read becomes one line, never a crash."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from swaa import results

_SCORES = re.compile(r"-scores-[0-9a-f]{8}$")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A result file.

    Attributes:
        path: relative to the folder of results, with ``/``.
        file: where it lies.
        result: its content.
    """

    path: str
    file: Path
    result: results.Result


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem that the report shows as one line.

    Attributes:
        path: of the file, relative to the folder of results, with ``/``.
        message: what is wrong with the file, or what it lacks.
    """

    path: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The contents of a folder of results.

    Attributes:
        path: of the folder.
        runs: by path.
        problems: by path.
    """

    path: Path
    runs: tuple[Run, ...]
    problems: tuple[Problem, ...]

    def link(self, path: str, page: Path) -> str:
        """Address of a file of this folder, relative to the page that shows it."""
        file = os.path.relpath(self.path / path, page.parent)
        return urllib.parse.quote(Path(file).as_posix())


def read_folder(path: str | Path) -> Folder:
    """Read all result files in a folder and its subfolders.

    Raises:
        FileNotFoundError: when there is no such folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {root}; name the one that 'swaa eval', 'swaa bench' and 'swaa demo' wrote"
        )
    runs, problems = [], []
    for file in sorted(root.rglob("*.json")):
        name = file.relative_to(root).as_posix()
        try:
            result = results.load(file)
            _check(result)
        except (ValueError, OSError, RecursionError) as error:
            problems.append(Problem(path=name, message=_line(error, file)))
        else:
            runs.append(Run(path=name, file=file, result=result))
    problems += _interrupted(root)
    return Folder(
        path=root,
        runs=tuple(runs),
        problems=tuple(sorted(problems, key=lambda problem: problem.path)),
    )


def _check(result: results.Result) -> None:
    """Check what the schema leaves open and the page relies on."""
    if not all(isinstance(row, Mapping) for row in result.rows):
        raise ValueError("has rows that are not JSON objects")
    if not isinstance(result.config, Mapping):
        raise ValueError("has a config that is not a JSON object")
    provenance = result.provenance
    if not isinstance(provenance.versions, Mapping):
        raise ValueError("has versions that are not a JSON object")
    for name in ("device", "created"):
        if not isinstance(getattr(provenance, name), str):
            raise ValueError(f"has a provenance whose {name!r} is not text")


def _interrupted(root: Path) -> Iterator[Problem]:
    for file in sorted(root.rglob("*.jsonl")):
        # Scores of a search and verdicts of a judge are kept next to results; they are not runs.
        kept = _SCORES.search(file.stem) or file.name.endswith(results.VERDICTS)
        if not kept and not file.with_suffix(".json").exists():
            yield Problem(
                path=file.relative_to(root).as_posix(),
                message="samples without a result: the run was interrupted; start it again",
            )


def _line(error: Exception, file: Path) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply to be a result file"
    text = " ".join(str(error).split())
    # The line begins with the path already.
    return text.removeprefix(f"{file} ").removeprefix(f"{file}: ")
