"""The charts, in a headless Chromium: what they show, tell and let choose."""

import dataclasses
import json

import pytest

from swaa.report import write_report
from tests.report import runs

EVAL = "tiny, multikey, 1,024 tokens"
GATHERED = "tiny, multikey, 2,048 tokens"
HOLLOW = "none"  # how a mark without a filling says so


def _told(page, panel="quality", kind="symbol"):
    return [mark[0] for mark in page.marks(panel, kind)]


def _chosen(page, name, panel="quality"):
    return page.run(f"document.querySelector('#{panel} select[name={name}]')?.value ?? null")


def _texts(page, panel, selector):
    found = f"[...document.querySelectorAll('#{panel} {selector}')].map((node) => node.textContent)"
    return page.run(found)


def _options(page, name, panel="quality"):
    return _texts(page, panel, f"select[name={name}] option")


def _axis(page, panel, which):
    return page.run(
        f"document.querySelector('#{panel} .role-axis[aria-label^=\"{which}-axis\"]').ariaLabel"
    )


def _write(browser, tmp_path, some):
    runs.write(some, tmp_path / "results")
    browser.open(write_report(tmp_path / "results", tmp_path / "page.html").path)


def _spot(page, name):
    """Where the mark of a setting lies in the window."""
    return page.run(
        f"""(() => {{
          const marks = [...document.querySelectorAll("#quality .mark-symbol.role-mark > path")];
          const mark = marks.find((one) => one.ariaLabel.startsWith({json.dumps(name)}));
          mark.scrollIntoView({{ block: "center", behavior: "instant" }});
          const b = mark.getBoundingClientRect();
          return [b.x + b.width / 2, b.y + b.height / 2];
        }})()"""
    )


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "finger"])
def test_a_point_tells_its_values(page, touch):
    page.pick("quality", "group", EVAL)
    x, y = _spot(page, "fast")
    if touch:
        page.tap(x, y)
    else:
        page.mouse("mouseMoved", x, y)
        page.settle()
    title, *shown = page.text("#vg-tooltip-element").splitlines()
    assert title == "fast"
    assert "80.0 % right (8 of 10), 95 % interval 60.0 % to 100.0 %" in shown
    assert "1.00 s: time to first token, median over the samples" in shown
    assert "2.00x as fast as full attention" in shown
    # A screen reader is told the same.
    assert "; ".join([title, *shown]) in _told(page)
    page.click("#quality h2")
    assert not page.count("#vg-tooltip-element.visible")


def test_names_and_values_are_never_read_as_html(page):
    page.pick("quality", "group", GATHERED)
    page.mouse("mouseMoved", *_spot(page, runs.EVIL))
    page.settle()
    assert page.text("#vg-tooltip-element").startswith(runs.EVIL)
    assert page.count("img") == 0


def test_the_papers_numbers_lie_next_to_ours_and_are_told_apart(page):
    page.pick("quality", "group", EVAL)
    own = page.marks()
    page.pick("quality", "beside", "paper: Qwen3-4B-Thinking-2507, LongMemEval")
    theirs = [mark for mark in page.marks() if mark[1] in (None, "transparent", HOLLOW)]
    assert len(page.marks()) == len(own) + len(theirs)
    assert len(theirs) > 20
    assert all(mark[0].endswith("as the paper reports it") for mark in theirs)
    assert "not measured here" in page.text("#quality .notes")
    assert _options(page, "cost") == ["time, full attention = 1"]  # seconds cannot be compared


def test_runs_that_may_have_shared_a_machine_are_priced_by_arithmetic(page):
    page.pick("quality", "group", GATHERED)
    assert _chosen(page, "cost") == "keys"
    assert "keys that the prompt's queries visit" in _axis(page, "quality", "X")
    assert not [text for text in _options(page, "cost") if "time" in text or "seconds" in text]
    assert _chosen(page, "beside") is None  # the paper gives times only
    assert "gathered runs may have shared a machine" in page.text("#quality .notes")
    said = _told(page)[-1]
    assert said.startswith(runs.EVIL)
    assert " % of the keys that full attention visits" in said
    assert " s: time" not in said


def test_the_shipped_recipes_are_shown_and_the_other_settings_on_request(browser, pages):
    browser.open(pages["committed"])
    for panel in ("quality", "speed"):
        few, many = _options(browser, "shown", panel)
        assert few.startswith("shipped recipes (")
        before = len(browser.marks(panel))
        browser.pick(panel, "shown", "all")
        assert len(browser.marks(panel)) > before
        assert many.startswith("all that were measured (")
    browser.pick("quality", "group", "SmolLM2-135M-Instruct.Q4_1, multikey, 4,096")
    marks = browser.marks()
    assert len(marks) > 40
    # What is shipped lies above the rest, in its own colour; the front is named in words.
    fills = [mark[1] for mark in marks]
    last_grey = len(fills) - fills[::-1].index("var(--other)")
    assert len(fills) - last_grey >= 4
    assert "kl_out" in browser.text("#quality .front-list")
    names = _texts(browser, "quality", ".role-mark text")
    assert {"full", "fast", "balanced", "quality"} <= set(names)


def test_a_recipe_has_one_look_in_every_chart(browser, pages):
    browser.open(pages["committed"])
    looks = {}
    for group in _options(browser, "group")[:8]:
        browser.pick("quality", "group", group)
        for panel in ("quality", "speed", "memory"):
            for mark in browser.marks(panel):
                looks.setdefault(mark[0].partition(";")[0], set()).add(mark[1])
    for name, colour in (("full", "var(--full)"), ("fast", None), ("balanced", None)):
        assert len(looks[name]) == 1
        assert colour in (None, *looks[name])
    assert looks["fast"] != looks["balanced"]


def test_no_two_names_of_a_chart_look_alike(page):
    names = [f"series {at}" for at in range(12)]
    code = f"[...looksOf({names}, ['full'], ['fast', 'naive'])].map(([, l]) => l.colour + l.shape)"
    looks = page.run(code)
    assert len(set(looks)) == len(looks) == 15
    page.pick("speed", "measure", "prefill, attention of one layer")
    assert len({mark[1] for mark in page.marks("speed")}) == 3  # two full attentions, and ours


def test_intervals_are_drawn(page):
    page.pick("quality", "group", GATHERED)
    spans = page.run(
        "[...document.querySelectorAll('#quality .mark-rule.role-mark line')].map((line) =>"
        " [line.getCTM().f - line.closest('svg').querySelector('.root').getCTM().f,"
        "  line.y2.baseVal.value])"
    )
    # The axis is 380 high, from 0 to 100 %: 9 of 10 from 70 to 100 %, 7 of 10 from 50 to 90 %.
    ends = sorted(sorted((1 - y / 380, 1 - (y + long) / 380)) for y, long in spans)
    assert ends[0] == pytest.approx([0.5, 0.9], abs=0.01)
    assert ends[1] == pytest.approx([0.7, 1.0], abs=0.01)


def test_axes_are_whole(browser, pages):
    browser.open(pages["committed"])
    for panel, which in (("quality", "X"), ("quality", "Y"), ("speed", "Y"), ("memory", "Y")):
        assert "with values from 0" in _axis(browser, panel, which)
    assert "titled 'tokens (logarithmic scale)'" in _axis(browser, "speed", "X")
    browser.pick("speed", "scale", "log")
    assert "for a log scale" in _axis(browser, "speed", "Y")
    assert "from 0% to 100%" in _axis(browser, "training", "Y")


def test_kept_answers_mean_scores_and_other_costs_can_be_chosen(page):
    page.pick("quality", "group", "tiny, needle in 512 tokens")
    page.pick("quality", "cost", "kv")
    page.pick("quality", "up", "kept")
    assert "right answers, full attention = 100 %" in _axis(page, "quality", "Y")
    assert "10.00 MiB of keys and values" in _told(page)[-1]
    assert _options(page, "up") == ["right answers", "share of full attention's answers"]
    page.pick("quality", "group", GATHERED)
    assert "mean score, full attention = 100 %" in _axis(page, "quality", "Y")
    page.pick("quality", "up", "score")
    assert "titled 'mean score'" in _axis(page, "quality", "Y")
    assert page.count("#quality .mark-rule.role-mark") == 0
    assert "mean score 75.0 %" in _told(page)[-1]
    page.pick("quality", "group", "tiny, tuned")
    assert _chosen(page, "cost") in ("flops", "kv")


def test_one_answer_of_several_runs_is_one_point(browser, tmp_path):
    one = runs.gathered()
    again = dataclasses.replace(one, config=one.config | {"model_revision": "b"})
    _write(browser, tmp_path, [one, again])
    assert len(browser.marks()) == 2
    assert browser.count("#quality .provenance li li") == 2  # both files are named


def test_tunings_are_told_apart_by_what_they_asked_for(browser, tmp_path):
    one = runs.tune()
    created = "2026-11-22T12:00:00+00:00"
    tunings = [
        dataclasses.replace(one, config=config, provenance=runs.provenance(created=when))
        for config, when in (
            ({"objective": "kl", "budgets": ["layers=1/4"]}, created),
            ({"objective": "nll", "budgets": ["layers=1/4"]}, created),
            ({"budgets": ["layers=1/4", "kv=1/2"], "baselines": True}, created.replace("22", "23")),
        )
    ]
    _write(browser, tmp_path, tunings)
    end = "multikey, 50 samples held out"
    both = "budgets layers=1/4 and kv=1/2, beside baselines"
    assert sorted(_options(browser, "group"))[-3:] == [
        f"tiny, tuned by kl, budgets layers=1/4, {end}, 2026-11-22 12:00:00",
        f"tiny, tuned by nll, budgets layers=1/4, {end}, 2026-11-22 12:00:00",
        f"tiny, tuned by the default objective, {both}, {end}, 2026-11-23 12:00:00",
    ]


def test_speed_can_be_seen_as_a_ratio_to_full_attention(page):
    page.pick("speed", "measure", "prefill, attention of one layer")
    assert "titled 'prefill, attention of one layer (ms)'" in _axis(page, "speed", "Y")
    page.pick("speed", "as", "relative")
    assert "titled 'speed, full attention = 1 (more is better)'" in _axis(page, "speed", "Y")
    assert "against the best full attention here" in _told(page, "speed")[0]
    row = _texts(page, "speed", ".numbers tbody tr:nth-child(4) td")
    assert row[:2] == ["swaa triton (window 64 + 4 sinks)", "4,096"]
    assert row[5] == "2.00x"
    assert "0123456 + changes" in page.text("#speed .provenance")
    page.pick("speed", "measure", "share of Amdahl's limit reached, first token")
    assert "first token (%)'" in _axis(page, "speed", "Y")


def test_what_was_measured_at_the_most_lengths_comes_first(page):
    assert _chosen(page, "measure", "speed") == "time to first token"
    assert _options(page, "measure", "speed")[-1].startswith(("throughput", "time to first token"))
    assert _chosen(page, "group", "memory").startswith("qwen3-4b")


def test_two_models_never_share_a_picture_nor_two_runs_of_one(browser, tmp_path):
    again = runs.generate()
    again = dataclasses.replace(again, config={**again.config, "repeats": 9})
    _write(browser, tmp_path, [runs.generate(), again, runs.generate("qwen3-30b-a3b")])
    label = browser.text("#speed label:nth-of-type(2) span")
    assert label == "Model, machine (one of 3)"
    groups = _options(browser, "group", "speed")
    assert len({group.rpartition(", ")[2] for group in groups}) == 3
    browser.pick("speed", "shown", "all")
    for group in groups:
        browser.pick("speed", "group", group)
        assert len(browser.marks("speed")) == 6  # three series at two lengths, of one run
        assert group in browser.text("#speed .chosen")
        (file,) = browser.text("#speed .provenance").splitlines()
        assert group.partition(",")[0] in file


def test_lines_that_lie_on_one_another_are_named(browser, pages):
    browser.open(pages["committed"])
    browser.pick("memory", "measure", "KV after the prompt")
    said = browser.text("#memory .notes")
    assert said.startswith("One line, as they are equal or nearly so: stock")
    assert said.endswith("balanced, fast.")


def test_a_single_length_is_drawn_as_bars_from_zero(page):
    page.pick("memory", "group", "tiny, bfloat16, A CPU")
    assert len(page.marks("memory", "rect")) == 2
    assert "with values from 0" in _axis(page, "memory", "X")
    texts = _texts(page, "memory", ".role-mark text")
    assert texts == ["40.00 MiB, 1.00x", "10.00 MiB, 4.00x"]
    page.click("#memory .numbers summary")
    assert "10,485,760" in page.text("#memory .numbers tbody tr:last-child")


def test_a_training_is_drawn_with_its_intervals(page):
    told = _told(page, "training", "rect")
    assert len(told) == 6
    assert told[0] == (
        "needle: full attention, untrained; 40 of 40 right, 95 % interval 91.2 % to 100.0 %"
    )
    assert page.count("#training .mark-rule.role-mark line") == 6
    page.click("#training .numbers summary")
    assert "recipe, trained by kl" in page.text("#training .numbers")


def test_a_click_on_the_legend_brings_a_name_out(page):
    page.pick("quality", "group", EVAL)
    opacities = (
        "[...document.querySelectorAll('#quality .mark-symbol.role-mark > path')]"
        ".map((m) => m.getAttribute('opacity'))"
    )
    assert set(page.run(opacities)) == {"1"}
    x, y = page.run(
        "(() => { const t = document.querySelector('#quality .role-legend-label text');"
        " t.scrollIntoView({ block: 'center', behavior: 'instant' });"
        " const b = t.getBoundingClientRect(); return [b.x + 5, b.y + 5]; })()"
    )
    page.mouse("mouseMoved", x, y)
    page.mouse("mousePressed", x, y)
    page.mouse("mouseReleased", x, y)
    page.settle()
    assert sorted(page.run(opacities)) == ["0.15", "1"]
