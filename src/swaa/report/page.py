"""Put the page together: its parts, and the results as JSON inside it."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa.recipes import list_recipes
from swaa.report.figures import Figures, model_name
from swaa.report.folder import Folder, Problem, Run, read_folder
from swaa.report.kinds import figures_of
from swaa.report.paper import read_paper

SCRIPTS = (
    *("format", "looks", "mask"),
    *("scale", "pointer", "chart", "bars"),
    *("figure", "cost", "pareto"),
    *("covered", "curves"),
    *("layer", "explorer", "runs"),
)
"""Parts of the page's script, in order; ``main`` comes last."""

_TITLE = b"<title>swaa report</title>"
"""Tells a page of ours from other files."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A page that was written.

    Attributes:
        path: of the page.
        runs: result files in it.
        problems: what could not be read or drawn.
    """

    path: Path
    runs: int
    problems: tuple[Problem, ...]


def write_report(results: str | Path, output: str | Path) -> Report:
    """Write the page of a folder of results: the same bytes for the same files.

    Args:
        results: folder of all results.
        output: file to write; links to run files are relative to it.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when the file is there and is no report, which is left as it is.
    """
    folder, page = read_folder(results), Path(output)
    _check_page(page)
    drawn = [(run, *figures_of(run)) for run in folder.runs]
    found = [problem for _, _, problem in drawn if problem is not None]
    problems = sorted([*folder.problems, *found], key=lambda problem: problem.path)
    content = _content(folder, page, [(run, figures) for run, figures, _ in drawn], problems)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_fill(content), encoding="utf-8", newline="\n")
    return Report(path=page, runs=len(folder.runs), problems=tuple(problems))


def _check_page(page: Path) -> None:
    if page.is_file():
        with page.open("rb") as file:
            start = file.read(4096)
        if not start or _TITLE in start:
            return
    elif not page.is_dir():
        return  # nothing is there, or a pipe
    raise ValueError(
        f"{page} is there and is no report, so it will not be replaced: name another file by -o"
    )


def _content(
    folder: Folder, page: Path, drawn: Iterable[tuple[Run, Figures]], problems: Iterable[Problem]
) -> dict[str, Any]:
    runs, answers, measurements = [], [], []
    settings: dict[str, dict[str, Any]] = {}
    for index, (run, figures) in enumerate(drawn):
        runs.append(_run(folder, page, run, figures))
        answers += [{"run": index, **dataclasses.asdict(item)} for item in figures.answers]
        measurements += [
            {"run": index, **dataclasses.asdict(item)} for item in figures.measurements
        ]
        for name, config in figures.configs.items():
            settings[f"{name}: {config.describe()}"] = config.to_dict()
    paper = read_paper()
    models = [run["provenance"]["model"] for run in runs]
    return {
        "models": list(dict.fromkeys(model_name(model) for model in models if model)),
        "runs": runs,
        "answers": answers,
        "measurements": measurements,
        "problems": [
            {**dataclasses.asdict(problem), "href": folder.link(problem.path, page)}
            for problem in problems
        ],
        "recipes": [recipe.to_dict() for recipe in list_recipes()],
        "settings": [{"name": name, "config": settings[name]} for name in sorted(settings)],
        "paper": dataclasses.asdict(paper),
    }


def _run(folder: Folder, page: Path, run: Run, figures: Figures) -> dict[str, Any]:
    beside = {
        name: folder.link(other.as_posix(), page)
        for name, ending in (("samples", ".jsonl"), ("picture", ".png"))
        if (folder.path / (other := Path(run.path).with_suffix(ending))).exists()
    }
    shown = {name: getattr(figures, name) for name in ("subject", "setting", "task", "outcome")}
    return {
        "path": run.path,
        "files": {"result": folder.link(run.path, page), **beside},
        **run.result.to_dict(),
        **shown,
        "tokens": list(figures.tokens),
    }


def _fill(content: dict[str, Any]) -> str:
    parts = importlib.resources.files("swaa.report").joinpath("page")

    def read(name: str) -> str:
        return parts.joinpath(name).read_text("utf-8").strip()

    # "<" never appears in the data, so no value can end the script element it lies in.
    data = json.dumps(content, sort_keys=True, ensure_ascii=True).replace("<", "\\u003c")
    script = "\n\n".join(read(f"{name}.js") for name in (*SCRIPTS, "main"))
    page = read("page.html")
    for mark, text in (("STYLE", read("page.css")), ("SCRIPT", script), ("DATA", data)):
        page = page.replace(f"<!--{mark}-->", text)
    return page + "\n"
