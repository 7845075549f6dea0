"""The figures of speed and memory against length, in a headless Chromium."""

import dataclasses
import itertools
import json
import math

import pytest

from swaa.report import write_report
from tests.report import runs
from tests.report.browser import choose_group, marks


def test_speed_can_be_seen_as_a_ratio_to_full_attention(page):
    choose_group(page, "prefill, attention of one layer", "speed")
    assert page.text("#speed .axis-name") == "↑ prefill, attention of one layer (ms)"
    assert "tokens" in page.text("#speed .axis-name.end")
    page.click("#speed .segmented button", "full attention = 1")
    assert page.text("#speed .axis-name") == "↑ speed, full attention = 1 (more is better)"
    page.run("document.querySelector('#speed .chart svg').focus()")
    page.press("Home")
    assert "against the best full attention here" in page.text("#say")
    rows = page.run(
        "[...document.querySelectorAll('#speed .numbers tbody tr')]"
        ".map((r) => [...r.children].map((c) => c.textContent))"
    )
    assert rows[3][:2] == ["swaa triton (window 64 + 4 sinks)", "4,096"]
    assert rows[3][5] == "2.00x"
    assert "0123456 + changes" in page.text("#speed .provenance")


def test_what_was_measured_at_the_most_lengths_comes_first(page):
    """A curve says more than bars, however many they are."""
    bars = [("bars", "b", name, 512) for name in "pqr"]
    curves = [("curve", "c", "p", 512), ("curve", "d", "p", 512), ("curve", "d", "p", 1024)]
    names = ("measure", "group", "series", "tokens")
    rest = {"chart": "speed", "unit": "s", "value": 1.0, "run": 0}
    rest |= {"low": None, "high": None, "note": "", "full": False, "ours": True}
    items = [dict(zip(names, one, strict=True)) | rest for one in (*bars, *curves)]
    chosen = page.run(
        "(() => { const host = document.createElement('div');"
        " const data = JSON.parse(byId('data').textContent);"
        f" data.measurements = {json.dumps(items)};"
        " showCurves(host, data, 'speed', ['']);"
        " return [...host.querySelectorAll('select')].map((one) => one.value); })()"
    )
    assert chosen == ["curve", "d"]


def test_the_limit_is_shown_in_per_cent(page):
    choose_group(page, "share of Amdahl's limit reached, first token", "speed")
    assert page.text("#speed .axis-name").endswith("(%)")


def _ticks(page, panel):
    """The bytes that the ticks of an axis name, from the lowest up."""
    texts = page.run(
        f"[...document.querySelectorAll('#{panel} .axes text[text-anchor=end]')]"
        ".map((n) => n.textContent)"
    )
    units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    parts = [text.split() if text != "0" else ("0", "B") for text in texts]
    return [float(number) * units[unit] for number, unit in parts]


def test_ticks_of_bytes_are_binary(page):
    choose_group(page, "KV after the prompt", "memory")
    choose_group(page, "qwen3-4b", "memory", 1)
    page.click("#memory .segmented button", "log")
    ticks = _ticks(page, "memory")
    assert len(ticks) > 2
    # Powers of two, or one and a half of them.
    assert {math.frexp(tick)[0] for tick in ticks} <= {0.5, 0.75}
    page.click("#memory .segmented button", "linear")
    ticks = _ticks(page, "memory")
    assert ticks[0] == 0
    steps = {after - before for before, after in itertools.pairwise(ticks)}
    assert len(ticks) > 2
    assert len(steps) == 1
    assert math.frexp(steps.pop())[0] == 0.5
    page.click("#memory .segmented button", "log")


@pytest.mark.parametrize("octaves", [0.3, 0.8, 2, 5, 12])
def test_an_axis_of_bytes_has_a_few_ticks_over_any_range(page, octaves):
    low = 3 * 2**30
    ticks = page.run(
        f"scale({{log: true, binary: true}}, [{low}, {low * 2**octaves}], 0, 400, 5).ticks"
    )
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(ticks)


def test_two_models_of_one_kind_never_share_a_picture(browser, tmp_path):
    other = runs.generate("qwen3-30b-a3b")
    runs.write([runs.generate(), other], tmp_path / "results")
    browser.open(write_report(tmp_path / "results", tmp_path / "page.html").path)
    for panel in ("speed", "memory"):
        label = browser.text(f"#{panel} .controls label:nth-of-type(2) span")
        assert label == "Model, machine (one of 2)"
        for model in ("qwen3-4b", "qwen3-30b-a3b"):
            choose_group(browser, f"{model}, ", panel, 1)
            assert f" · {model}, " in browser.text(f"#{panel} .chosen")
            files = browser.text(f"#{panel} .provenance").splitlines()
            assert len(files) == 1
            assert f"{model}-" in files[0]


def test_two_runs_of_one_model_are_told_apart(browser, tmp_path):
    """Their lines would run to and fro between the runs' values."""
    again = runs.generate()
    again = dataclasses.replace(again, config={**again.config, "repeats": 9})
    runs.write([runs.generate(), again], tmp_path / "results")
    browser.open(write_report(tmp_path / "results", tmp_path / "page.html").path)
    options = browser.run(
        "[...document.querySelectorAll('#speed select')[1].options].map((o) => o.value)"
    )
    names = {path.name for path in (tmp_path / "results").rglob("*.json")}
    assert {option.rpartition(", ")[2] for option in options} == names
    assert marks(browser, "speed") == 6  # three series at two lengths, of one run


def _series(name, values, ours=True):
    points = [{"x": 1024 * 2**at, "y": value} for at, value in enumerate(values)]
    return {"name": name, "ours": ours, "points": points}


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([_series("stock", [1, 100], ours=False)], "stock lies under a: the same values."),
        (
            [_series("stock", [1, 100], ours=False), _series("b", [1, 101]), _series("c", [1])],
            "b, c and stock lie under a: at most 1.0 % apart.",
        ),
        ([_series("longer", [1, 100, 100])], None),
        ([_series("other", [1, 50])], None),
    ],
)
def test_lines_that_another_hides_are_named(page, others, said):
    series = [_series("a", [1, 100]), *others]
    shown = page.run(f"coveredList({json.dumps(series)}, true)?.textContent ?? null")
    assert shown == said


def test_what_is_hidden_depends_on_the_scale(page):
    series = json.dumps([_series("a", [1, 1000]), _series("b", [2, 1000])])
    assert page.run(f"coveredList({series}, true)") is None
    said = page.run(f"coveredList({series}, false).textContent")
    assert said == "b lies under a: at most 100 % apart."


def test_a_line_that_is_switched_off_hides_nothing(browser, pages):
    browser.open(pages["committed"])
    choose_group(browser, "qwen3-4b", "memory", 1)
    assert "fast" in browser.text("#memory .covered")
    assert browser.text("#memory .covered").endswith("lie under balanced: the same values.")
    browser.click("#memory .legend button", "balanced")
    assert browser.text("#memory .covered").endswith("lies under fast: the same values.")


def test_a_single_length_is_drawn_as_bars(page):
    choose_group(page, "KV after the prompt", "memory")
    choose_group(page, "tiny, bfloat16, A CPU", "memory", 1)
    assert page.text("#memory .bars li:last-child").split("\n")[-2:] == ["10.00 MiB", "4.00x"]
    page.click("#memory .numbers summary")
    assert "10,485,760" in page.text("#memory .numbers tbody tr:last-child")
