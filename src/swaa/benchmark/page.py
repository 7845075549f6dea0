"""Write docs/measurements/benchmarks.md from result files: ``python -m swaa.benchmark.page``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from swaa.benchmark.generate.table import Row, Table, tables
from swaa.documents import line
from swaa.results import Result, load

INTRODUCTION = """# Benchmarks

Written by `python -m swaa.benchmark.page` from the files in `results/`; do not edit. Each number
was measured in the same process as its baseline, on the machine and at the commit that the file
names.
"""
END_TO_END = """## End to end

`swaa bench generate MODEL` times a prompt and an answer under each recipe, and next to it:

- *stock*: the same model with full attention in every layer, by the fastest stock kernels that run
  on that machine. Every kernel that is installed and gives right results is timed first.
- *no attention*: the same run with attention replaced by a tensor that exists already. Its time is
  `T0`.

The *limit* is the speed-up that faster attention alone can bring (Amdahl's law):
`limit = (T0 + stock attention) / (T0 + our attention)`, with both attentions timed alone at the
sizes of the run. *of limit* is how much of it is reached. The limit is an estimate, good to some
percent. It can be above 100 %: then `T0` and attention timed alone add up to less than the whole
run takes, and the difference is larger for stock than for ours.

All rows read the prompt in chunks and share the static cache, the CUDA graph of a decoding step and
the compiled layers; only what serves the attention calls differs. Shapes without weights get random
numbers: speed depends on sizes, not on values. Long prompts are timed a few times, some once;
*timings* says how often. `naive sink_tokens=128` is window and sinks, nothing else.

Among the stock kernels, *aten varlen* is PyTorch's own for sequences of unequal length. *every
slot* reads the whole static cache, also slots of tokens that are still to come, which needs no
mask.
"""
KERNELS = """## Attention kernels

`swaa bench kernels` times attention alone. Only visible pairs of query and key count as useful
operations. On that GPU, each kernel first showed which keys its rows see; a kernel whose mask is
wrong is not timed.
"""


def write_page(
    folder: str | Path = "results", path: str | Path = "docs/measurements/benchmarks.md"
) -> None:
    """Write the page."""
    Path(path).write_text(make_page(folder), encoding="utf-8")


def make_page(folder: str | Path) -> str:
    """The page's text: end to end first, then kernels; a section per file, the longest first."""
    parts = [INTRODUCTION]
    for introduction, kind, section in (
        (END_TO_END, "generate", _generate_section),
        (KERNELS, "kernels", _kernels_section),
    ):
        files = [(load(file), file) for file in sorted((Path(folder) / kind).glob("*.json"))]
        if files:
            parts.append(introduction)
        for result, file in sorted(files, key=lambda one: -len(one[0].rows)):
            parts.append(_heading(result, file))
            parts += [_markdown(table) for table in section(result)]
    return "\n".join(parts)


def _heading(result: Result, file: Path) -> str:
    made = result.provenance
    versions = ", ".join(f"{name} {v}" for name, v in made.versions.items() if v is not None)
    commit = "an unknown commit" if made.commit is None else f"commit {made.commit[:8]}"
    changed = ", with changes" if made.dirty else ""
    name = made.model if made.model is not None else result.name
    revision = f" ({made.model_revision})" if made.model_revision else ""
    link = f"../../results/{result.kind}/{file.stem}"
    return (
        f"### {name}{revision}, {made.device}\n\n"
        f"[{file.name}]({link}.json), {made.created[:10]}, {commit}{changed}. {made.dtype};"
        f" {versions}.\n\n![{name}]({link}.png)\n"
    )


def _generate_section(result: Result) -> list[Table]:
    return [_stock_table(result), *tables(result.rows)]


def _stock_table(result: Result) -> Table:
    cells = []
    for row in result.rows:
        if row["kind"] != "stock":
            continue
        for phase in ("prefill", "decode"):
            for name, seconds in row[phase]["tried"].items():
                best = "taken" if name == row[phase]["best"] else ""
                timed = isinstance(seconds, float)
                value = f"{1e3 * seconds:.3f}" if timed else f"not timed: {seconds}"
                cells.append((phase, name, value, best))
    title = "Stock kernels tried: one layer at 32,768 tokens, or the longest prompt (ms)"
    if any(kernel == "FA4" and value.startswith("not timed") for _, kernel, value, _ in cells):
        title += "; without FA4, often the fastest, stock is slower than it could be"
    return Table(title, ("phase", "kernel", "ms", ""), cells)


def _kernels_section(result: Result) -> list[Table]:
    ceiling, *measured = result.rows
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in measured:
        groups.setdefault((row["phase"], row["tokens"], row["batch"]), []).append(row)
    rates = f"matmul {ceiling['matmul'] / 1e12:.0f} TFLOP/s, copy {ceiling['copy'] / 1e12:.2f} TB/s"
    return [
        _kernels_table(f"{phase}, {tokens:,} tokens, batch {batch} ({rates})", rows)
        for (phase, tokens, batch), rows in groups.items()
    ]


def _kernels_table(title: str, rows: Sequence[Row]) -> Table:
    decoding = rows[0]["phase"] == "decode"
    cells = []
    for row in rows:
        head = (row["kernel"], row["mask"])
        if row["refused"]:
            cells.append((*head, f"not measured: {row['refused']}", "", "", ""))
            continue
        if decoding:
            rate = (f"{row['kv_bytes_per_second'] / 1e12:.2f}", f"{row['of_copy']:.1%}")
        else:
            rate = (f"{row['useful_flops'] / 1e12:.0f}", f"{row['of_matmul']:.1%}")
        spread = f"{1e3 * row['p20']:.3f} to {1e3 * row['p80']:.3f}"
        cells.append((*head, f"{1e3 * row['p50']:.3f}", spread, *rate))
    units = ("TB/s", "of copy") if decoding else ("useful TFLOP/s", "of matmul")
    return Table(title, ("kernel", "mask", "median ms", "p20 to p80", *units), cells)


def _markdown(table: Table) -> str:
    numeric = [
        all(cell[:1].isdecimal() or cell[:1] in ("-", "+", "") for cell in column)
        for column in zip(*table.cells, strict=True)
    ]
    lines = [
        line(table.headers),
        line(["---:" if right else "---" for right in numeric]),
        *map(line, table.cells),
    ]
    return f"**{table.title}**\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_page(*sys.argv[1:3])
