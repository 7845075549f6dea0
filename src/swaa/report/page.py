"""Put the page together: its parts, and the results as JSON inside it."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa.extras import install_line
from swaa.recipes import list_recipes
from swaa.report.conclusion import conclude
from swaa.report.figures import Figures, model_name
from swaa.report.folder import Folder, Problem, Run, read_folder
from swaa.report.kinds import figures_of
from swaa.report.paper import read_paper

SCRIPTS = (
    *("format", "figure", "charts"),
    *("quality", "curves", "training"),
    *("mask", "layer", "explorer", "runs"),
    "main",
)
"""Parts of the page's script, in order."""

_TITLE = b"<title>swaa report</title>"
"""Marks a page as ours."""


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
        ImportError: when the library that draws the charts is missing.
        ValueError: when the file exists and is not a report; it is left unchanged.
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
        f"{page} exists and is not a report, so it is not replaced: choose another file with -o"
    )


def _content(
    folder: Folder, page: Path, drawn: Iterable[tuple[Run, Figures]], problems: Iterable[Problem]
) -> dict[str, Any]:
    drawn = list(drawn)
    runs = [_run(folder, page, run, figures) for run, figures in drawn]
    settings: dict[str, dict[str, Any]] = {}
    for _, figures in drawn:
        for name, config in figures.configs.items():
            settings[f"{name}: {config.describe()}"] = config.to_dict()
    conclusion = conclude([figures for _, figures in drawn])
    paper = read_paper()
    models = [run["provenance"]["model"] for run in runs]
    return {
        "models": list(dict.fromkeys(model_name(model) for model in models if model)),
        "runs": runs,
        "tiles": [dataclasses.asdict(tile) for tile in conclusion.tiles],
        "start": conclusion.recipe,
        "answers": _of_each(drawn, "answers"),
        "measurements": _of_each(drawn, "measurements"),
        "trainings": _of_each(drawn, "trainings"),
        "problems": [
            {**dataclasses.asdict(problem), "href": folder.link(problem.path, page)}
            for problem in problems
        ],
        "recipes": [recipe.to_dict() for recipe in list_recipes()],
        "settings": [{"name": name, "config": settings[name]} for name in sorted(settings)],
        "paper": dataclasses.asdict(paper),
    }


def _of_each(drawn: Iterable[tuple[Run, Figures]], name: str) -> list[dict[str, Any]]:
    """One attribute of all runs' figures, each item with the number of its run."""
    return [
        {"run": index, **dataclasses.asdict(item)}
        for index, (_, figures) in enumerate(drawn)
        for item in getattr(figures, name)
    ]


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

    # "<" never appears in the data, so no value can end the script element that holds it.
    data = json.dumps(content, sort_keys=True, ensure_ascii=True).replace("<", "\\u003c")
    script = "\n\n".join(read(f"{name}.js") for name in SCRIPTS)
    page = read("page.html")
    style = read("page.css")
    for mark, text in (
        *(("STYLE", style), ("SCRIPT", script), ("DATA", data)),
        ("LIBRARY", _charting_library()),
    ):
        page = page.replace(f"<!--{mark}-->", text)
    return page + "\n"


@functools.cache
def _charting_library() -> str:
    """Vega-Lite and its dependencies, as one module inside the page; made without a network."""
    try:
        import vl_convert
    except ImportError:
        line = install_line("report")
        raise ImportError(f"the page's charts need vl-convert-python; run: {line}") from None
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
