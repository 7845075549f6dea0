"""The tables of docs/measurements/tuning.md, and what it says of them, are made by the results."""

import json

import pytest

from swaa import results
from swaa.documents import table
from swaa.evaluation import gathered, published
from swaa.evaluation.summary import is_right
from swaa.statistics import mcnemar
from tests.documents import ROOT
from tests.selection.tables import duels, fill, markdown, ranges

PAGE = ROOT / "docs/measurements/tuning.md"
MEASUREMENTS = ROOT / "docs/measurements/tuning-in-full.md"
ANSWERS = ROOT / "results/tune/eval"
NAME = "results/tune/smollm2-135m-instruct.q4-1.gguf-multiquery-2-tune"
FULL_LAYERS, DECODING = f"{NAME}-fe958312.json", f"{NAME}-8493d839.json"
PATTERN = "every:4+3"
"""The best of the patterns that step through the layers, at a quarter of them."""
SCORES = "results/tune/smollm2-135m-instruct.q4-1.gguf-multikey-scores-718de83b.jsonl"


@pytest.fixture(scope="module")
def records():
    return [json.loads(line) for line in (ROOT / SCORES).read_text().splitlines()]


@pytest.fixture(scope="module")
def text():
    return MEASUREMENTS.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def words(text):
    """The text as one line, however it is broken."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def full_layers():
    return results.load(ROOT / FULL_LAYERS)


@pytest.fixture(scope="module")
def decoding():
    return results.load(ROOT / DECODING)


def test_the_tables_of_answers_are_those_of_the_results(text, full_layers, decoding):
    for group in ("layers=1of4", "layers=1of2"):
        assert markdown(full_layers, group=group) in text
        assert duels(full_layers, group=group, task="multikey") in text
    assert markdown(decoding) in text
    for name, result in ((FULL_LAYERS, full_layers), (DECODING, decoding)):
        assert f"../{name})" in text
        assert result.provenance.dirty is False
        assert result.provenance.commit.startswith("f0553ea")
        assert f"{result.provenance.seconds:.0f} seconds" in text


@pytest.fixture(scope="module")
def answered():
    """By task and length, each setting's answers as bits; and its layers left full."""
    found, layers = {}, {}
    for path in sorted(ANSWERS.glob("*.json")):
        result = results.load(path)
        assert result.provenance.dirty is False
        assert result.provenance.commit[:7] in PAGE.read_text(encoding="utf-8")
        column = found.setdefault((result.provenance.data, result.config["length"]), {})
        for run in gathered.read(path):
            column[run.setting] = [is_right(sample) for sample in run.samples]
            layers[run.setting] = run.result.config["swaa"]["full_layers"]
    return found, layers


def answers_table(answered):
    """The table of docs/measurements/tuning.md."""
    found, layers = answered
    columns = [("multikey", 4096, ""), ("multikey", 4096, " tail 128"), ("multikey", 7500, "")]
    columns += [("needle", 4096, ""), ("needle", 7500, "")]
    titles = [f"{task} {length:,}{tail and ', tail 128'}" for task, length, tail in columns]
    rows = []
    searched = [
        f"tuned {objective} seed {seed}" for objective in ("nll", "kl") for seed in range(3)
    ]
    for name in ("full", *searched, "kl_out", PATTERN, "no full layer"):
        which = "all" if name == "full" else ranges(layers.get(name, ())) or "none"
        cells = [_cell(found[task, length], name, tail) for task, length, tail in columns]
        rows.append([name, which, *cells])
    return table(["recipe", "full layers", *titles], rows, left=2)


def _cell(column, name, tail):
    if f"{name}{tail}" not in column:
        return ""
    mine, pattern = column[f"{name}{tail}"], column[f"{PATTERN}{tail}"]
    p = "" if name in (PATTERN, "full") else f" (p {mcnemar(mine, pattern):.2g})"
    return f"{sum(mine)}{p}"


def test_the_table_of_answers_is_that_of_the_results(answered):
    assert answers_table(answered) in PAGE.read_text(encoding="utf-8")


def test_what_the_page_says_of_answers_is_in_the_results(answered):
    found, layers = answered
    words = " ".join(PAGE.read_text(encoding="utf-8").split())
    near, far = found["multikey", 4096], found["multikey", 7500]
    searched = [name for name in near if name.startswith("tuned") and "tail" not in name]
    assert len(searched) == 6
    ahead = [sum(near[name]) - sum(near[PATTERN]) for name in searched]
    worst = max(mcnemar(near[name], near[PATTERN]) for name in searched)
    assert (
        f"by {min(ahead)} to {max(ahead)} of 100 at 4,096 tokens (p {worst:.2g} at most)" in words
    )
    beyond = {sum(far[name]) - sum(far[PATTERN]) for name in searched if name in far}
    assert beyond == {29}
    assert "At 7,500 tokens the two of seed 0 are ahead by 29 (p 3e-08)" in words
    late = [mcnemar(far["kl_out"], far[name]) for name in searched if name in far]
    assert {sum(far[name]) - sum(far["kl_out"]) for name in searched if name in far} == {2}
    assert f"ahead of it by 2 (p {min(late):.2g} and more)" in words
    least = min(mcnemar(near[name], near["full"]) for name in searched)
    assert f"none differs from full attention (p {least:.2g} at least)" in words
    common = set.intersection(*(set(layers[name]) for name in searched))
    assert common == {7, 17, 18, 23}
    assert "they agree on layers 7, 17, 18 and 23" in words
    ranked = [mcnemar(near["kl_out"], near[name]) for name in searched]
    behind = [sum(near["kl_out"]) - sum(near[name]) for name in searched]
    told = f"by {min(behind)} to {max(behind)}, p {min(ranked):.2g} to {max(ranked):.2g}"
    assert f"(56; ahead of the six {told})" in words
    tailed = [sum(bits) for name, bits in near.items() if "tuned" in name and "tail" in name]
    assert (min(tailed), max(tailed)) == (48, 51)
    assert "the pattern 54, the searched sets 48 to 51" in words
    nine = (near, found["needle", 4096], far)
    assert [sum(column["nine decode"]) for column in nine] == [50, 99, 50]
    assert [sum(column["full"]) for column in nine] == [49, 100, 54]


def _multikey(result):
    return {
        row["recipe"]: row
        for row in result.rows
        if row["task"] == "multikey" and row["source"] != "full"
    }


def test_what_the_text_says_of_losses_is_in_the_results(words, full_layers):
    rows = _multikey(full_layers)
    good = [row["right"] for row in rows.values() if row["kl"] <= 0.012]
    bad = [row["right"] for row in rows.values() if row["kl"] >= 0.028]
    assert (len(good), min(good), max(good)) == (11, 46, 56)
    assert (len(bad), min(bad), max(bad)) == (15, 25, 35)
    assert len(rows) == 26
    assert "eleven recipes at 0.012 or less give 46 to 56" in words
    assert "fifteen at 0.028 or more 25 to 35" in words
    for name, shown in (
        ("kl_out layers=1of4", "0.496 (`kl_out`) goes with 56"),
        ("odd layers=1of2", "0.498 (`odd`) with 34"),
        ("tuned layers=1of4", "the answers' nll is 0.433"),
        ("answer_nll_out layers=1of4", "has a set with 0.429"),
    ):
        assert f"{rows[name]['nll']:.3f}" in shown
        assert shown in words
    assert all(row["exact"] == 0 for row in full_layers.rows if row["source"] == "full")


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("lean", "answers {}: tuning is ahead by {} (p {}) and {} (p {})."),
        ("fast-decode-last-half", "answers {}: ahead by {} (p {}) and {} (p {})."),
    ],
)
def test_decoding_compares_with_the_published_answers(words, decoding, setting, shown):
    columns = {(one.task, one.length): one for one in published.read_columns(ROOT / "results")}
    found, told = [], []
    for task in ("multikey", "needle"):
        column = columns[task, 4096]
        full, tuned = (
            [bit == "1" for bit in row["bits"]] for row in decoding.rows if row["task"] == task
        )
        assert [is_right(sample) for sample in column.runs["full"].samples] == full
        theirs = [is_right(sample) for sample in column.runs[setting].samples]
        found.append(str(sum(theirs)))
        told += [sum(tuned) - sum(theirs), f"{mcnemar(tuned, theirs):.2g}"]
    assert shown.format(" and ".join(found), *told) in words


def test_every_choice_is_compared_with_the_search_and_with_every_pattern(full_layers):
    head, _, *lines = duels(full_layers, group="layers=1of2", task="multikey").splitlines()
    assert head.count("|") == 8
    assert [line.split(" | ")[0] for line in lines][:2] == ["| full", "| tuned"]
    assert lines[1].startswith("| tuned | - | +23 (p 2.4e-07) |")
    assert len(lines) == 8


def test_the_tables_are_those_of_the_scores(text, records):
    assert text.count("<!-- ") == 3
    assert fill(text, records) == text
    assert SCORES in text
