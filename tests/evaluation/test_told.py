"""Answers that the pages of measurements tell are those of the result files."""

import dataclasses
import math
import re
import statistics

import pytest

from swaa import results
from swaa.benchmark.overview import OWN
from swaa.config import SWAAConfig
from swaa.evaluation import gathered
from swaa.evaluation.summary import is_right
from swaa.evaluation.tasks.perplexity import split
from swaa.evaluation.tasks.ruler import NAMES
from swaa.recipes import find_recipe
from swaa.statistics import mcnemar
from tests.documents import ROOT

PAGES = ROOT / "docs/measurements"
MODEL = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
COLUMNS = ("full", "selected", "quality", "balanced", "fast")


def runs_of(task, length=16_384, folder="eval"):
    """The runs of the model on a task, by setting; of settings run twice, the newest."""
    loaded = [(results.load(path), path) for path in (ROOT / "results" / folder).glob("*.json")]
    found = {}
    for result, path in sorted(loaded, key=lambda pair: pair[0].provenance.created):
        asked = result.config["model"], result.config["task"]["task"], result.config["length"]
        if asked == (MODEL, task, length):
            found |= {run.setting: run for run in gathered.read(path)}
    return found


def cells(page, first):
    """The cells behind a table's first cell."""
    line = re.search(rf"^\| {re.escape(first)} \| (.*) \|$", page, re.MULTILINE)
    assert line, f"no row {first!r}"
    return line[1].split(" | ")


@pytest.fixture(scope="module")
def ruler():
    return {name: runs_of(f"ruler:{name}") for name in NAMES}


def test_rulers_scores(ruler):
    page = (PAGES / "selected-keys.md").read_text("utf-8")
    scores = {setting: [] for setting in COLUMNS}
    right = {setting: [] for setting in COLUMNS}
    for name, runs in ruler.items():
        rows = {setting: runs[setting].result.rows[0] for setting in COLUMNS}
        assert {row["samples"] for row in rows.values()} == {25}
        assert cells(page, f"`{name}`") == [f"{100 * row['score']:.1f}" for row in rows.values()]
        for setting in COLUMNS:
            scores[setting].append(rows[setting]["score"])
            right[setting] += map(is_right, runs[setting].samples)
    means = {setting: f"{100 * statistics.mean(values):.1f}" for setting, values in scores.items()}
    assert cells(page, "**mean**") == list(means.values())
    assert cells(page, "all that was asked for, of 325") == [
        str(sum(values)) for values in right.values()
    ]
    complete = {setting: runs.result.rows[0]["right"] for setting, runs in ruler["vt"].items()}
    assert f"names all variables in {complete['fast']}, full attention in {complete['full']}," in (
        " ".join(page.split())
    )
    assert f"`balanced` in {complete['balanced']}." in page
    assert [run.result.rows[0]["right"] for run in ruler["cwe"].values()] == [0] * 5
    assert round(mcnemar(right["selected"], right["full"]), 2) == 0.29
    assert mcnemar(right["quality"], right["full"]) == 1
    assert round(mcnemar(right["balanced"], right["full"]), 4) == 0.0005
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert f"full attention scores {means['full']} %, `selected` {means['selected']}," in readme
    told = ", ".join(f"`{name}` {means[name]}" for name in COLUMNS[2:])
    assert f"{told}." in readme
    for setting in COLUMNS[1:]:
        told = f"mean score {means[setting]} % (full attention {means['full']} %;"
        assert any(told in line for line in find_recipe(setting).measured_on)


SETTINGS = {
    "full attention": "full",
    "`selected`": "selected",
    "the same with 2,048": "selected-2048",
    "`quality`": "quality",
    "`balanced`": "balanced",
    "`fast`": "fast",
    "even layers full, no tail": "sinks-full-decode-even",
    "odd layers full, no tail": "sinks-full-decode-odd",
    "no full layer, no tail": "sinks-full-decode",
    "`fast`, full decode in the last half of the layers only": "fast-decode-last-half",
    "`lean`": "lean",
    "`naive`": "naive",
}
EXPLAINED = {
    "`selected`": "`selected`: tail, 4,096 selected keys in all layers",
    "`quality`": "`quality`: tail, half of the layers full",
    "`balanced`": "`balanced`: tail, a quarter of the layers full",
    "`fast`": "`fast`: tail, no full layer",
    "`lean`": "`fast`, full decode in the middle half only (`lean`)",
    "`naive`": "`naive`: the window alone",
}
"""Settings in the first of the two tables."""


def perplexities(run):
    """Of the tokens beyond window and sinks, and of the answer; also where all layers are full."""
    means = split(run.samples, window=2048, sink_tokens=128)
    return f"{math.exp(means['beyond']):.2f}, {math.exp(means['answer']):.2f}"


def test_twelve_settings():
    page = (PAGES / "accuracy.md").read_text("utf-8")
    before, long = page.split("| setting, 30,000 tokens |")
    long, _ = long.split("## SmolLM2")
    for length, count, part in ((16_384, 100, before), (30_000, 50, long)):
        runs = [
            runs_of(task, length)
            for task in ("multikey", "multiquery:2", "variable_tracking", "needle")
        ]
        for told, setting in SETTINGS.items():
            rows = [one[setting].result.rows[0] for one in runs]
            assert {row["samples"] for row in rows} == {count}
            name = EXPLAINED.get(told, told) if part is before else told
            shown = cells(part, name)
            assert shown[:4] == [str(row["right"]) for row in rows], (told, length)
            if part is before:
                assert shown[4] == perplexities(runs_of("perplexity")[setting])
    for name in set(re.findall(r"results/eval/(qwen[^)]*)", before + long)):
        assert (ROOT / "results/eval" / name).exists()


def test_tuned_layers_against_the_middle():
    page = (PAGES / "tuning.md").read_text("utf-8")
    _, page = page.split("| full layers, 16,384 tokens |")
    told = {
        "all: full attention": "full",
        "**tuned**: 2, 6, 8, 10, 12 to 14": "tuned",
        "`middle:1/4`: 10 to 16 (`balanced`)": "balanced",
        "none: `fast`": "fast",
    }
    right = {}
    for column, task in enumerate(("multikey", "multiquery:2", "variable_tracking")):
        runs = runs_of(task, folder="tune/eval")
        for name, setting in told.items():
            assert cells(page, name)[column] == str(runs[setting].result.rows[0]["right"])
            right[setting] = [is_right(sample) for sample in runs[setting].samples]
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    for setting, words in (
        ("tuned", "answers {}, {} and {} of 100 prompts"),
        ("balanced", "quarter of `balanced` {}, {} and {} ("),
    ):
        rows = [
            runs_of(task, folder="tune/eval")[setting].result.rows[0]["right"]
            for task in ("multikey", "multiquery:2", "variable_tracking")
        ]
        assert words.format(*rows) in readme
    kept = SWAAConfig.load(ROOT / "examples/settings/qwen2.5-coder-1.5b-quarter.json")
    assert SWAAConfig.from_dict(runs["tuned"].result.config["swaa"]) == kept
    assert kept.full_layers == (2, 6, 8, 10, 12, 13, 14)
    assert f"p {mcnemar(right['tuned'], right['balanced']):.3f})" in page
    assert f"p {mcnemar(right['tuned'], right['full']):.2f} on chains" in page


@pytest.mark.parametrize("prompt", ["full", "selected"])
def test_chains_with_keys_chosen_in_decoding(prompt):
    page = (PAGES / "keys-in-decoding.md").read_text("utf-8")
    for length, column in ((16_384, -2), (30_000, -1)):
        runs = runs_of("variable_tracking", length)
        told = {"everything": prompt} | {
            f"window, sinks, {keys:,} others": f"{prompt}-decode-{keys}"
            for keys in (512, 1024, 2048, 4096)
        }
        shown = "full" if prompt == "full" else f"`{prompt}`"
        for reads, setting in told.items():
            row = cells(page, f"{shown} | {reads}")
            right = str(runs[setting].result.rows[0]["right"]) if setting in runs else "-"
            assert row[column] == right, (reads, length)


def test_what_4096_keys_lose_is_chance():
    words = " ".join((PAGES / "keys-in-decoding.md").read_text("utf-8").split())
    p = {}
    for length in (16_384, 30_000):
        answers = {
            name: {sample["id"]: is_right(sample) for sample in run.samples}
            for name, run in runs_of("variable_tracking", length).items()
        }
        for name in ("full", "selected"):
            few, whole = answers[f"{name}-decode-4096"], answers[name]
            p[name, length] = mcnemar([few[one] for one in whole], list(whole.values()))
    full, selected = (
        [f"{p[name, n]:.2g}" for n in (16_384, 30_000)] for name in ("full", "selected")
    )
    assert f"p {full[0]} and {full[1]} where the prompt is full, {selected[0]} and" in words


SCORES = {
    "**mean + standard deviation, pages of 16, the largest among the heads**": (
        "mean+std",
        "max",
        16,
    ),
    "the same, softmax shares of the heads compared": ("mean+std", "share", 16),
    "the same, pages of 32": ("mean+std", "max", 32),
    "the same, pages of 64": ("mean+std", "max", 64),
    "bounds of the keys (Quest)": ("quest", "max", 16),
    "bounds, softmax shares": ("quest", "share", 16),
    "as if keys were normally distributed": ("gaussian", "max", 16),
    "the mean alone": ("mean", "max", 16),
    "the true sum of a page's weights, which needs all its keys": ("mass", "max", 16),
}


def test_scores_of_pages():
    page = (PAGES / "keys-in-decoding.md").read_text("utf-8")
    name = re.search(r"results/selection/(pages-\w+\.json)", page)[1]
    rows = results.load(ROOT / "results/selection" / name).rows
    kl = {(row["score"], row["heads"], row["page"], row["keys"]): row["kl"] for row in rows}
    for told, rule in SCORES.items():
        assert cells(page, told) == [f"{kl[*rule, keys]:.4f}" for keys in (128, 256, 512)]
    assert f"alone {kl['none', 'max', 16, 0]:.2f})" in page


BYTES = {
    "all heads: full attention": "full",
    "28 of 56 heads": "full-h58",
    "14 of 28 layers": "full-l58",
    "14 of 56 heads": "full-h35",
    "7 of 28 layers": "full-l35",
}


def test_heads_and_layers_at_the_same_bytes():
    page = (PAGES / "kv-heads.md").read_text("utf-8")
    for column, task in enumerate(("multikey", "multiquery:2", "variable_tracking"), start=1):
        runs = runs_of(task)
        for told, setting in BYTES.items():
            shown = cells(page, told)
            if setting not in runs:
                assert shown[column] == "-"
                continue
            row = runs[setting].result.rows[0]
            assert shown[column] == str(row["right"])
            assert row["samples"] == 100
            if setting != "full":
                assert shown[0] == f"{100 * row['kv_share']:.0f} %"


@pytest.mark.parametrize("unit", ["heads", "layers"])
@pytest.mark.parametrize("budget", [58, 35])
def test_the_recipes_kept_are_those_asked(unit, budget):
    kept = SWAAConfig.load(ROOT / f"examples/settings/qwen2.5-coder-1.5b-{unit}-{budget}.json")
    run = runs_of("multikey")[f"full-{unit[0]}{budget}"]
    asked = SWAAConfig.from_dict(run.result.config["swaa"])
    assert dataclasses.replace(kept, dense_tail=asked.dense_tail) == asked
    # The whole prompt is the tail.
    assert asked.dense_tail > run.result.config["length"]


OWN_TIMES = {
    "stock, full attention": "stock",
    "full attention through swaa": "full",
    "`selected`": "selected",
    "`selected` with 2,048 keys": "selected-2048",
    "`quality`": "quality",
    "`balanced`": "balanced",
    "`fast`": "fast",
    "sinks and full decode, even layers full": "sinks-full-decode-even",
    "the same, odd layers full": "sinks-full-decode-odd",
    "sinks and full decode": "sinks-full-decode",
    "`fast`, full decode in the last half of the layers": "fast-decode-last-half",
    "`fast`, full decode in the middle half (`lean`)": "lean",
    "`naive`: window alone": "naive",
}


def test_the_models_own_times():
    _, page = (
        (PAGES / "selected-keys.md").read_text("utf-8").split("### The 1.5B model's own times")
    )
    rows = [row for row in results.load(ROOT / "results" / OWN).rows if "tokens" in row]
    for column, tokens in enumerate((16_384, 30_000)):
        timed = {row["setting"]: row for row in rows if row["tokens"] == tokens}
        for told, setting in OWN_TIMES.items():
            row = timed[setting]
            first, faster = row["first_token_s"]["p50"], row["first_token_speedup"]
            shown = cells(page, told)
            assert shown[column] == f"{first:.3f} s, {faster:.2f}x"
            if tokens == 30_000:
                assert shown[2] == f"{1e3 * row['per_token_s']['p50']:.2f} ms"
        nothing, stock = (timed[name]["first_token_s"]["p50"] for name in ("no attention", "stock"))
        assert cells(page, "no attention at all")[column] == f"{nothing:.3f} s"
        assert f"{stock / nothing:.2f} " in page


STATES = {
    "full attention": ("fast", "full"),
    "`balanced`, before": ("balanced", "before"),
    "`balanced`, after KL": ("balanced", "kl"),
    "`fast`, before": ("fast", "before"),
    "`fast`, after KL": ("fast", "kl"),
    "`fast`, KL, seed 1": ("fast", "kl, seed 1"),
    "`fast`, KL, seed 2": ("fast", "kl, seed 2"),
    "`fast`, SFT": ("fast", "sft"),
}


def trained(recipe):
    """Rows of a training's result by state and task, and the file's name."""
    path = next((ROOT / "results/train").glob(f"qwen2.5-coder-1.5b-16384-{recipe}-*.json"))
    return {(row["state"], row["task"]): row for row in results.load(path).rows}, path.name


def test_answers_before_and_after_training():
    page = (PAGES / "training.md").read_text("utf-8")
    for told, (recipe, state) in STATES.items():
        rows, name = trained(recipe)
        assert name in page
        shown = [(re.findall(r"[0-9.]+", cell) or ["-"])[0] for cell in cells(page, told)]
        for column, task in enumerate(("multikey", "multiquery:2", "variable_tracking"), start=1):
            row = rows.get((state, task))
            assert shown[column] == (str(row["right"]) if row else "-")
            assert row is None or shown[0] == str(row["samples"])
        if (state, "training") in rows:
            assert shown[4] == f"{rows[state, 'training']['seconds']:.0f}"


def test_what_training_keeps():
    page = " ".join((PAGES / "training.md").read_text("utf-8").split())
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    tasks = ("multikey", "multiquery:2", "variable_tracking")
    for recipe in ("balanced", "fast"):
        rows, _ = trained(recipe)
        kept, before = (
            [f"{rows[state, task]['retention']:.0f}" for task in tasks]
            for state in ("kl", "before")
        )
        told = f"{kept[0]}, {kept[1]} and {kept[2]} %"
        assert told in page
        assert f"{before[0]}, {before[1]} and {before[2]} %" in page.replace(" of its answers", "")
        right = [rows["kl", task]["right"] for task in tasks]
        assert f"{right[0]}, {right[1]} and {right[2]}" in readme
        under = "full, adapter of kl on"
        assert f"{rows[under, 'variable_tracking']['right']}" in page
        short = rows[under, "perplexity of 1,024 tokens"]
        assert f"{1 + short['rise']:.3f} times (`{recipe}`)" in page
        assert f"{1 + short['rise_last_256']:.3f}" in page
