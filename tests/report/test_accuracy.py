"""The figure of accuracy against cost, in a headless Chromium."""

import dataclasses
import itertools

import pytest

from swaa.report import write_report
from tests.report import runs
from tests.report.browser import choose_group, marks


def test_a_point_tells_its_values_to_the_mouse_and_to_the_keyboard(page):
    choose_group(page, "tiny, multikey, 1,024 tokens")
    place = page.run(
        "(() => { const b = [...document.querySelectorAll('#accuracy .chart .point .mark')]"
        ".at(-1).getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    assert page.run("document.querySelector('#accuracy .tip').hidden")
    page.mouse("mouseMoved", *place)
    shown = page.text("#accuracy .tip")
    assert "80.0 % right (8 of 10), 95 % interval 60.0 % to 100.0 %" in shown
    assert "1.00 s: time to first token" in shown
    assert "2.00x as fast as full attention" in shown
    page.mouse("mouseMoved", 2, 2)
    assert page.run("document.querySelector('#accuracy .tip').hidden")
    page.run("document.querySelector('#accuracy .chart svg').focus()")
    page.press("End")
    assert "full attention" in page.text("#accuracy .tip")
    assert "90.0 % right (9 of 10)" in page.text("#say")
    page.press("Home")
    assert "80.0 % right" in page.text("#say")
    page.press("Escape")
    assert page.run("document.querySelector('#accuracy .tip').hidden")


def test_the_papers_numbers_lie_beside_ours_and_are_told_apart(page):
    choose_group(page, "tiny, multikey, 1,024 tokens")
    own = marks(page)
    choose_group(page, "paper: Qwen3-4B-Thinking-2507, LongMemEval", place=1)
    theirs = page.count("#accuracy .chart .point .open")
    assert marks(page) == own + theirs
    assert theirs > 20
    assert "not measured here" in page.text("#accuracy .notes")
    assert page.run(
        "[...document.querySelectorAll('#accuracy .segmented button')]"
        ".find((b) => b.textContent === 'seconds').disabled"
    )


def test_runs_that_may_have_shared_a_machine_are_priced_by_arithmetic(page):
    choose_group(page, "tiny, multikey, 2,048 tokens")
    assert page.text('#accuracy .segmented [aria-pressed="true"]') == "keys, full = 1"
    assert page.text("#accuracy .axis-name.end").startswith("keys that the prompt's queries visit")
    texts = "[...document.querySelectorAll('#accuracy .segmented button')].map((b) => b.innerText)"
    assert not [text for text in page.run(texts) if "time" in text or "seconds" in text]
    # The paper gives times only.
    assert page.count("#accuracy select") == 1
    notes = page.text("#accuracy .notes")
    assert "Not timed: gathered runs may have shared a machine" in notes
    assert "The paper gives times only" in notes
    page.run("document.querySelector('#accuracy .chart svg').focus()")
    page.press("Home")
    said = page.text("#say")
    assert runs.EVIL in said
    assert " % of the keys that full attention visits" in said
    assert " s: time" not in said


def test_the_front_is_named_in_words_and_in_the_chart(browser, pages):
    for width, length in itertools.product((1200, 390), ("4,096", "7,500")):
        browser.open(pages["committed"], width=width, phone=width < 500)
        choose_group(browser, f"SmolLM2-135M-Instruct.Q4_1, multikey, {length}")
        assert browser.text('#accuracy .segmented [aria-pressed="true"]') == "FLOPs, full = 1"
        named = "[...document.querySelectorAll('#accuracy .front-list strong')].map(textOf)"
        drawn = "[...document.querySelectorAll('#accuracy .labels text')].map(textOf)"
        texts = [
            browser.run(one.replace("textOf", "(n) => n.textContent")) for one in (named, drawn)
        ]
        assert len(texts[0]) > 2
        missing = set(texts[0]) - set(texts[1])
        # A phone may lack the room for one; the words below the chart name all.
        assert len(missing) <= (1 if width < 500 else 0)


def test_one_answer_of_several_runs_is_one_point(browser, tmp_path):
    one = runs.gathered()
    again = dataclasses.replace(one, config=one.config | {"model_revision": "b"})
    runs.write([one, again], tmp_path / "results")
    browser.open(write_report(tmp_path / "results", tmp_path / "page.html").path)
    assert marks(browser) == 2
    assert browser.count("#accuracy .provenance li li") == 2  # both files are named


def test_whiskers_are_the_intervals(page):
    choose_group(page, "tiny, multikey, 2,048 tokens")
    ys = page.run(
        """(() => {
          const chart = document.querySelector("#accuracy .chart svg");
          const lines = [...chart.querySelectorAll(".grid")].map((l) => l.y1.baseVal.value);
          const d = chart.querySelector(".point .whisker").getAttribute("d");
          const [, top, bottom] = /M[^,]+,([^V]+)V([^M]+)M/.exec(d).map(Number);
          return [Math.max(...lines), Math.min(...lines), top, bottom];
        })()"""
    )
    zero, one, top, bottom = ys
    # The last series lies lowest and is drawn first: 7 of 10, from 50 % to 90 %.
    assert (zero - top) / (zero - one) == pytest.approx(0.9, abs=1e-6)
    assert (zero - bottom) / (zero - one) == pytest.approx(0.5, abs=1e-6)


def test_kept_accuracy_and_other_costs_can_be_chosen(page):
    choose_group(page, "tiny, needle in 512 tokens")
    page.click("#accuracy .segmented button", "KV, full = 1")
    page.click("#accuracy .segmented button", "of full attention")
    assert "full attention = 100 %" in page.text("#accuracy .axis-name")
    page.run("document.querySelector('#accuracy .chart svg').focus()")
    page.press("Home")
    assert "10.00 MiB of keys and values" in page.text("#say")
    choose_group(page, "tiny, tuned")
    assert "KV, full = 1" in page.text('#accuracy .segmented [aria-pressed="true"]')


def test_the_choices_of_the_axes_are_named(page):
    legends = (
        "[...document.querySelectorAll('#accuracy .segmented legend')].map((n) => n.innerText)"
    )
    assert page.run(legends) == ["Cost (x axis)", "Quality (y axis)"]


def test_tasks_that_count_parts_of_answers_have_a_mean_score(page):
    choose_group(page, "tiny, multikey, 2,048 tokens")
    page.click("#accuracy .segmented button", "mean score")
    assert page.text("#accuracy .axis-name") == "↑ mean score (%)"
    assert page.count("#accuracy .point .whisker") == 0
    page.click("#accuracy .segmented button", "of full attention")
    assert "mean score, full attention = 100 %" in page.text("#accuracy .axis-name")
    page.run("document.querySelector('#accuracy .chart svg').focus()")
    page.press("Home")
    assert "mean score 75.0 %" in page.text("#say")
    choose_group(page, "tiny, needle in 512 tokens")
    assert "mean score" not in page.text("#accuracy .segmented:nth-of-type(2)")


def test_many_marks_are_folded_away_on_a_phone(browser, pages):
    heights = {}
    for width in (390, 1200):
        browser.open(pages["committed"], width=width, phone=width < 500)
        heights[width] = browser.run("document.querySelector('#accuracy .marks').offsetHeight")
    assert heights[390] < 60 < heights[1200]
    browser.open(pages["committed"], width=390, phone=True)
    browser.click("#accuracy .marks summary")
    before = marks(browser)
    browser.click("#accuracy .legend button", "full")
    assert marks(browser) == before - 1
    assert browser.run("document.querySelector('#accuracy .marks').open")  # drawn anew, still open


def test_tunings_are_told_apart_by_what_they_asked_for(browser, tmp_path):
    one = runs.tune()
    tunings = [
        dataclasses.replace(one, config=config, provenance=runs.provenance(created=created))
        for config, created in (
            ({"objective": "kl", "budgets": ["layers=1/4"]}, "2026-11-22T12:00:00+00:00"),
            ({"objective": "nll", "budgets": ["layers=1/4"]}, "2026-11-22T12:00:00+00:00"),
            ({"budgets": ["layers=1/4", "kv=1/2"], "baselines": True}, "2026-11-23T13:14:15+00:00"),
        )
    ]
    runs.write(tunings, tmp_path / "results")
    browser.open(write_report(tmp_path / "results", tmp_path / "page.html").path)
    groups = browser.run(
        "[...document.querySelector('#accuracy select optgroup').children].map((o) => o.text)"
    )
    end = "multikey, 50 samples held out"
    both = "budgets layers=1/4 and kv=1/2, beside baselines"
    assert sorted(groups) == [
        f"tiny, tuned by kl, budgets layers=1/4, {end}, 2026-11-22 12:00:00",
        f"tiny, tuned by nll, budgets layers=1/4, {end}, 2026-11-22 12:00:00",
        f"tiny, tuned by the default objective, {both}, {end}, 2026-11-23 13:14:15",
    ]
