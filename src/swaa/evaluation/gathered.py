"""Finished runs on the same prompts, gathered in one pair of files for all settings.

A comparison of thirty settings leaves sixty files, which repeat the prompts' facts thirty times.
When gathered, the ``.json`` holds the rows of every setting, and the ``.jsonl`` one line per prompt
with every setting's answer. Runs are gathered only if they agree in everything but the setting,
provenance included; :func:`find` returns each unchanged.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa import results

KIND = "eval"
"""Folder of these results."""

_SETTINGS = "settings"
_REPLIES = "replies"
_OF_PROMPT = frozenset(
    {"id", "prompt", "length", "needles", "needle_distance", "tags", "answers", "answer_from"}
)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished run, in the form for files.

    Attributes:
        setting: what the configuration is called.
        result: with the configuration under ``swaa``.
        samples: one JSON object each.
        path: of the file that it was read from.
    """

    setting: str
    result: results.Result
    samples: tuple[Mapping[str, Any], ...]
    path: Path


def label(setting: str) -> str:
    """A setting's name in a gathered file: a recipe's name, or a file's without its ending.

    >>> label("fast"), label("my/settings.json"), label("theirs.json#2")
    ('fast', 'settings', 'theirs#2')
    """
    return Path(setting).name.replace(".json", "")


def is_gathered(result: results.Result) -> bool:
    """Whether a result holds the rows of several settings."""
    return _SETTINGS in result.config


def read(path: Path) -> list[Finished]:
    """The runs in a gathered file.

    Raises:
        ValueError: for a file that cannot be read as gathered, or without its samples.
    """
    result = results.load(path)
    if not is_gathered(result):
        raise ValueError(f"{path} is the result of one setting; expected gathered ones")
    shared = {key: value for key, value in result.config.items() if key != _SETTINGS}
    lines = results.read_samples(path)
    found = []
    for name, config in result.config[_SETTINGS].items():
        if not lines or any(name not in line[_REPLIES] for line in lines):
            raise ValueError(
                f"{path.with_suffix('.jsonl')} has no samples of {name}; restore the file, or"
                f" delete {path.name} to run them again"
            )
        rows = [row for row in result.rows if row["setting"] == name]
        one = results.Result(
            kind=result.kind,
            name=result.name,
            config={**shared, "swaa": config},
            rows=tuple({k: v for k, v in row.items() if k != "setting"} for row in rows),
            provenance=result.provenance,
        )
        samples = tuple(_whole(line, name) for line in lines)
        found.append(Finished(setting=name, result=one, samples=samples, path=path))
    return found


def find(
    name: str, setting: str, identity: Mapping[str, Any], *, folder: str | Path
) -> Finished | None:
    """A run in the gathered files of a folder; ``None``: it is in none.

    Args:
        name: of the gathered files, their hash left out.
        setting: what the configuration is called.
        identity: of the run, as in its own result file.
        folder: of all results.
    """
    wanted = (label(setting), results.result_hash(KIND, name, identity))
    for path in _files(folder, name):
        for run in read(path) if is_gathered(results.load(path)) else ():
            if (run.setting, results.result_hash(KIND, name, run.result.config)) == wanted:
                return run
    return None


def gather(runs: Sequence[Finished], name: str, *, folder: str | Path) -> list[Path]:
    """Put runs into gathered files, and remove the files that held them.

    A file holds one setting of a name: runs with the same name but other knobs get their own file.

    Args:
        runs: finished, on the same task at the same length; gathered ones stay where they are.
        name: of the gathered files, the hash left out.
        folder: of all results.

    Returns:
        The files written.

    Raises:
        ValueError: when two settings have the same name.
    """
    single = [run for run in runs if not is_gathered(results.load(run.path))]
    written = []
    for group in _alike(single):
        kept = next((read(path) for path in _files(folder, name) if _takes(path, group)), [])
        path = _write([*kept, *group], name, folder)
        written.append(path)
        for old in {run.path for run in (*kept, *group)} - {path}:
            old.unlink()
            old.with_suffix(".jsonl").unlink()
            old.with_suffix(results.VERDICTS).unlink(missing_ok=True)
    return written


def require_different_names(settings: Iterable[str]) -> None:
    """Refuse settings that one file could not hold.

    Raises:
        ValueError: with the name that two of them have.
    """
    names = [label(setting) for setting in settings]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"two settings are called {twice!r}; rename one of their files to gather them"
        )


def _write(runs: Sequence[Finished], name: str, folder: str | Path) -> Path:
    require_different_names([run.setting for run in runs])
    settings = {label(run.setting): run.result.config["swaa"] for run in runs}
    provenances = {run.path: run.result.provenance for run in runs}.values()
    provenance = dataclasses.replace(
        max(provenances, key=lambda one: one.created),
        seconds=round(sum(one.seconds or 0.0 for one in provenances), 3),
    )
    result = results.Result(
        kind=KIND,
        name=name,
        config={**_shared(runs[0].result), _SETTINGS: settings},
        rows=tuple(
            {"setting": label(run.setting), **row} for run in runs for row in run.result.rows
        ),
        provenance=provenance,
    )
    return results.save(result, samples=_lines(runs), folder=folder)


def _lines(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """One line for each prompt, the answers of all settings in it."""
    lines: dict[str, dict[str, Any]] = {}
    for run in runs:
        for sample in run.samples:
            line = {key: value for key, value in sample.items() if key in _OF_PROMPT}
            line = lines.setdefault(sample["id"], {**line, _REPLIES: {}})
            reply = {key: value for key, value in sample.items() if key not in _OF_PROMPT}
            line[_REPLIES][label(run.setting)] = reply
    return list(lines.values())


def _whole(line: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**{k: v for k, v in line.items() if k != _REPLIES}, **line[_REPLIES][name]}


def _alike(runs: Iterable[Finished]) -> list[list[Finished]]:
    """Runs grouped by what must be the same in one file."""
    groups: dict[str, list[Finished]] = {}
    for run in runs:
        groups.setdefault(_key(run.result, _shared(run.result)), []).append(run)
    return list(groups.values())


def _takes(path: Path, runs: Sequence[Finished]) -> bool:
    """Whether a gathered file fits the runs and does not hold their names yet."""
    result = results.load(path)
    names = {label(run.setting) for run in runs}
    if not is_gathered(result) or names & result.config[_SETTINGS].keys():
        return False
    shared = {key: value for key, value in result.config.items() if key != _SETTINGS}
    return _key(result, shared) == _key(runs[0].result, _shared(runs[0].result))


def _shared(result: results.Result) -> dict[str, Any]:
    return {key: value for key, value in result.config.items() if key != "swaa"}


def _key(result: results.Result, shared: Mapping[str, Any]) -> str:
    where_from = dataclasses.asdict(result.provenance)
    for of_one_run in ("seconds", "created"):
        del where_from[of_one_run]
    return json.dumps([shared, where_from], sort_keys=True)


def _files(folder: str | Path, name: str) -> list[Path]:
    form = re.compile(rf"{re.escape(name)}-[0-9a-f]{{8}}\.json")
    return sorted(path for path in (Path(folder) / KIND).glob("*.json") if form.match(path.name))
