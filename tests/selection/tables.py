"""The tables of docs/measurements/tuning-in-full.md, from result files."""

import re

from swaa.documents import line
from swaa.selection.report import beats

_MARKER = re.compile(
    r"(?P<marker><!-- (?P<role>full|decode) (?P<window>\d+) (?P<tail>\d+): (?P<counts>[\d ]+) -->)"
    r"\n(?:\n|\|.*\n)*"
)


def markdown(result, *, group=None):
    """A Markdown table of a ``tune`` result."""
    rows = [row for row in result.rows if _belongs(row, group)]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    recipes = {}
    for row in rows:
        recipes.setdefault(row["recipe"], {})[row["task"]] = row
    best = {task: _best_periodic(rows, task) for task in tasks}
    lines = [
        ["recipe", "layers", "FLOPs %", "KV %", *(f"{t} %" for t in tasks),
         *(f"{t} against the best periodic" for t in tasks)],
        ["---", "---", *["---:"] * (2 + len(tasks)), *["---"] * len(tasks)],
    ]  # fmt: skip
    for name, by_task in recipes.items():
        first = next(iter(by_task.values()))
        lines.append(
            [
                " = ".join([_short(name, group), *(_short(n, group) for n in first["also"])]),
                _layers(first["swaa"]),
                f"{100 * first['prefill_flops']:.0f}",
                f"{100 * first['kv_bytes']:.0f}",
                *(_score(by_task[t]) for t in tasks),
                *(_against(by_task[t], best[t]) for t in tasks),
            ]
        )
    return "\n".join(map(line, lines))


def duels(result, *, group, task):
    """A Markdown table of sets chosen by measuring, against search and every pattern."""
    rows = [row for row in result.rows if row["task"] == task and _belongs(row, group)]
    chosen = [row for row in rows if row["source"] != "periodic"]
    across = [row for row in rows if row["source"] in ("search", "periodic")]
    lines = [
        [f"{task} against", *(_short(row["recipe"], group) for row in across)],
        ["---", *["---"] * len(across)],
    ]
    for row in chosen:
        cells = ["-" if row is other else _duel(row, other) for other in across]
        lines.append([_short(row["recipe"], group), *cells])
    return "\n".join(map(line, lines))


def ranges(layers):
    """Layers in words.

    >>> ranges([0, 1, 2, 7, 9, 10])
    '0-2, 7, 9-10'
    """
    spans = []
    for layer in sorted(layers):
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _belongs(row, group):
    """Whether a row is of held-out answers, and of the group."""
    if row.get("role", "held out") != "held out":
        return False
    names = (row["recipe"], *row["also"])
    return group is None or row["source"] == "full" or any(n.endswith(f" {group}") for n in names)


def _short(name, group):
    return name.removesuffix(f" {group}") if group else name


def _layers(config):
    if config["window"] is None:
        return "all"
    full, decode = config["full_layers"], config["full_decode"]
    parts = [f"full {ranges(full)}"] if full else []
    if decode and decode is not True:
        parts.append(f"decode {ranges(decode)}")
    return "; ".join(parts) or "none"


def _score(row):
    share = 100 * row["right"] / row["samples"] if "right" in row else 100 * row["score"]
    return f"{share:.0f} ({100 * row['low']:.0f} to {100 * row['high']:.0f})"


def _best_periodic(rows, task):
    """The best of the patterns that step through all layers, as in the paper."""
    steps = ("odd", "even", "every")
    found = [
        row
        for row in rows
        if row["task"] == task
        and "right" in row
        and any(name.startswith(steps) for name in (row["recipe"], *row["also"]))
    ]
    return max(found, key=lambda row: row["right"], default=None)


def _against(row, best):
    if best is None or row["recipe"] == best["recipe"]:
        return "-" if best is None else "the best"
    return _duel(row, best)


def _duel(row, other):
    points, p = beats(row, other)
    return f"{points:+.0f} (p {p:.2g})"


def scored_sets(records, role, *, window, dense_tail, counts):
    """A Markdown table of a search's scores on the samples it was tuned on."""
    full = next(record for record in records if record["id"] == "full")
    sets = [
        record
        for record in records
        if (record.get("window"), record.get("dense_tail")) == (window, dense_tail)
        and (role == "full" or not record["full"])
    ]
    lines = [
        ["layers", "best set", "nll", "kl", "word for word", "best block", "nll", "kl"],
        ["---:", "---", "---:", "---:", "---:", "---", "---:", "---:"],
        ["all", "full attention", *_means(full), "", "", ""],
    ]
    for count in counts:
        group = [record for record in sets if len(record[role]) == count]
        best = min(group, key=_nll)
        blocks = [record for record in group if 1 < count == _span(record[role])]
        block = min(blocks, key=_nll, default=None)
        shown = ["", "", ""] if block is None else [ranges(block[role]), *_means(block)[:2]]
        lines.append([str(count), ranges(best[role]) or "none", *_means(best), *shown])
    return "\n".join(map(line, lines))


def _nll(record):
    return sum(record["nll"]) / len(record["nll"])


def _means(record):
    kl = sum(record["kl"]) / len(record["kl"])
    right = f"{sum(record['exact'])} of {len(record['exact'])}"
    return [f"{_nll(record):.3f}", f"{kl:.3f}", right]


def _span(layers):
    return max(layers) - min(layers) + 1


def fill(document, records):
    """A document with the table after each marker made anew by :func:`scored_sets`.

    A marker is a line ``<!-- ROLE WINDOW TAIL: COUNT COUNT ... -->``; its table follows.
    """

    def made(match):
        role, window, tail, counts = match.group("role", "window", "tail", "counts")
        numbers = {"window": int(window), "dense_tail": int(tail)}
        shown = scored_sets(records, role, counts=map(int, counts.split()), **numbers)
        return f"{match.group('marker')}\n\n{shown}\n\n"

    return _MARKER.sub(made, document)
