"""The published comparison: table and picture of docs/measurements/accuracy.md from result files.

``python -m swaa.evaluation.published results docs/measurements/accuracy.md`` writes the table
between the document's two marks and the picture next to it, both from the files alone. A test
compares.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from swaa import results
from swaa.config import SWAAConfig
from swaa.documents import replace_between, table
from swaa.evaluation import gathered
from swaa.evaluation.gathered import Finished
from swaa.evaluation.summary import by_place, is_right
from swaa.pictures import new_figure, save_figure
from swaa.plan import price
from swaa.statistics import mcnemar

BEGIN = "<!-- made by python -m swaa.evaluation.published: begin -->"

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""The model that the comparison uses."""

WINDOW = 1024
"""Window of every setting that slides (keys)."""

SHAPE = LlamaConfig(
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    hidden_size=576,
    intermediate_size=1536,
    max_position_embeddings=8192,
)
"""The model's sizes: costs are computed, not measured."""

TASKS = {"needle": "needle", "multikey": "multikey", "variable_tracking": "tracking"}
"""The tasks, and their column titles; the last is scored by shares."""

LIKELY = 0.05
"""A difference from full attention with a smaller p is marked."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One task at one length.

    Attributes:
        task: its name.
        length: tokens of each prompt.
        runs: the runs by setting.
        result: of the file, for its provenance.
    """

    task: str
    length: int
    runs: Mapping[str, Finished]
    result: results.Result

    @property
    def title(self) -> str:
        """The column's title."""
        return f"{TASKS[self.task]} {self.length:,}"

    def row(self, setting: str) -> Mapping[str, Any] | None:
        """The row for all samples of a setting; ``None``: it was not run."""
        run = self.runs.get(setting)
        return None if run is None else run.result.rows[0]

    def share(self, setting: str) -> float | None:
        """What was answered, 0 to 1: right answers, or for tracking the mean score."""
        row = self.row(setting)
        if row is None:
            return None
        return row["score"] if self.task == "variable_tracking" else row["accuracy"]

    def is_worse(self, setting: str) -> bool:
        """Whether full attention answers more of the same prompts, beyond chance."""
        run, full = self.runs[setting], self.runs["full"]
        ours, theirs = ([is_right(sample) for sample in one.samples] for one in (run, full))
        return sum(ours) < sum(theirs) and mcnemar(ours, theirs) < LIKELY


def read_columns(folder: str | Path) -> list[Column]:
    """The gathered files of the comparison, tasks in their order, short prompts first.

    Raises:
        ValueError: when there is none, or one lacks full attention.
    """
    columns = []
    for path in sorted((Path(folder) / gathered.KIND).glob("*.json")):
        result = results.load(path)
        config = result.config
        if config["model"] != MODEL or not gathered.is_gathered(result):
            continue
        runs = {run.setting: run for run in gathered.read(path)}
        windows = {one["window"] for one in config["settings"].values()} - {None}
        task, length = config["task"]["task"], config["length"]
        if task in TASKS and windows == {WINDOW}:
            if "full" not in runs:
                raise ValueError(f"{path} has no full attention to compare with")
            columns.append(Column(task=task, length=length, runs=runs, result=result))
    if not columns:
        raise ValueError(
            f"{folder} holds no gathered results of {MODEL} with windows of {WINDOW} tokens"
        )
    order = list(TASKS)
    return sorted(columns, key=lambda column: (column.length, order.index(column.task)))


def settings(columns: Sequence[Column]) -> dict[str, SWAAConfig]:
    """All settings: full attention first, then by their average, the best first.

    Shares of tracking are too noisy to rank by, and both tables use the same order.
    """
    configs = {
        name: SWAAConfig.from_dict(run.result.config["swaa"])
        for column in columns
        for name, run in column.runs.items()
    }

    def rank(name: str) -> tuple[bool, float, str]:
        # Over the columns in which all settings were run.
        shares = [
            column.share(name)
            for column in columns
            if column.task != "variable_tracking" and len(column.runs) == len(configs)
        ]
        known = [share for share in shares if share is not None]
        return name != "full", -sum(known) / max(1, len(known)), name

    return {name: configs[name] for name in sorted(configs, key=rank)}


def markdown(columns: Sequence[Column]) -> str:
    """The tables, and where they come from."""
    sources = "\n".join(map(_provenance, columns))
    parts = (_accuracy(columns), _places(columns), "Where they come from:", sources)
    return re.sub(r" +", " ", "\n\n".join(parts))


def draw(columns: Sequence[Column], path: Path) -> None:
    """Write the picture: a line for each setting, a panel for each task and length."""
    names = list(settings(columns))
    figure = new_figure(12, 0.6 + 0.24 * len(names), dpi=110)
    for place, column in enumerate(columns, start=1):
        axes = figure.add_subplot(1, len(columns), place)
        for height, name in enumerate(names):
            _draw_row(axes, column, name, height)
        axes.set_yticks(range(len(names)), names if place == 1 else [""] * len(names), fontsize=8)
        axes.set_xlim(-4, 104)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_title(column.title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    said = "right answers in %, of tracking the mean score; bars: 95 % intervals"
    figure.supxlabel(said, fontsize=9)
    save_figure(figure, path, comment=fingerprint(columns))


def fingerprint(columns: Sequence[Column]) -> str:
    """Fingerprint of what is drawn; the picture's file carries it."""
    return hashlib.sha256(markdown(columns).encode()).hexdigest()[:16]


def _accuracy(columns: Sequence[Column]) -> str:
    longest = max(column.length for column in columns)
    rows = []
    for name, config in settings(columns).items():
        ratios = price(SHAPE, config, prompt_length=longest).ratios()
        costs = (ratios["prefill_attention_flops"], ratios["kv_steady_bytes"])
        cells = [*(f"{100 * cost:.0f}" for cost in costs), *(_cell(one, name) for one in columns)]
        rows.append([f"`{name}`", *cells])
    return table(["setting", "prefill", "KV", *(column.title for column in columns)], rows)


def _cell(column: Column, name: str) -> str:
    row, share = column.row(name), column.share(name)
    if row is None or share is None:
        return ""
    if column.task == "variable_tracking":
        return f"{100 * share:.0f}"
    worse = "\\*" if name != "full" and column.is_worse(name) else ""
    return f"{100 * share:.0f}{worse} ({100 * row['low']:.0f} to {100 * row['high']:.0f})"


def _places(columns: Sequence[Column]) -> str:
    """Right answers by where the needle lies, for the tasks with a single needle."""
    columns = [column for column in columns if column.task != "variable_tracking"]
    names = settings(columns)
    rows = [[f"`{name}`", *(_place_cell(column, name) for column in columns)] for name in names]
    said = f"Right answers when the needle lies in the last {WINDOW:,} tokens; before them:"
    return f"{said}\n\n{table(['setting', *(column.title for column in columns)], rows)}"


def _place_cell(column: Column, name: str) -> str:
    run = column.runs.get(name)
    if run is None:
        return ""
    parts = by_place(run.samples, window=WINDOW, sink_tokens=0)
    near, far = parts["window"], parts["beyond"]
    return "; ".join(f"{sum(map(is_right, part))} of {len(part)}" for part in (near, far))


def _provenance(column: Column) -> str:
    result, provenance = column.result, column.result.provenance
    name = f"{result.name}-{results.result_hash(result.kind, result.name, result.config)}.json"
    commit = (provenance.commit or "")[:7]
    count = next(iter(column.runs.values())).result.rows[0]["samples"]
    return (
        f"- [{column.title}](../../results/{gathered.KIND}/{name}): {count} prompts, seed"
        f" {provenance.seed}, {provenance.device}, {provenance.dtype}, commit {commit},"
        f" {provenance.created[:10]}"
    )


def _draw_row(axes: Any, column: Column, name: str, height: int) -> None:
    row, share = column.row(name), column.share(name)
    if row is None or share is None:
        return
    colour = "C1" if name == "full" else "C0"
    axes.barh(height, 100 * share, color=colour, alpha=0.75, height=0.7)
    if column.task != "variable_tracking":
        axes.plot([100 * row["low"], 100 * row["high"]], [height] * 2, color="black", linewidth=1)


def main(folder: str, document: str) -> None:
    """Write table and picture."""
    columns = read_columns(folder)
    path = Path(document)
    text = replace_between(path.read_text("utf-8"), BEGIN, markdown(columns))
    draw(columns, path.with_suffix(".png"))
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
