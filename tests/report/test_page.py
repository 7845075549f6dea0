"""The page as people use it, in a headless Chromium without a network."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest

from swaa.report import write_report
from tests.report import runs


@pytest.mark.parametrize("name", ["all", "committed", "empty"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_opens_without_a_word_on_the_console(browser, pages, name, dark, width, tmp_path):
    browser.open(pages[name], width=width, height=740, dark=dark, phone=width < 500)
    assert browser.console == []
    assert browser.requests == [pages[name].as_uri()]
    assert browser.run("document.documentElement.scrollWidth") == width  # nothing sticks out
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_every_run_is_in_the_table_with_links_that_lead_somewhere(browser, pages):
    browser.open(pages["committed"])
    kept = sorted((pages["committed"].parent / "committed").rglob("*.json"))
    links = browser.run("[...document.querySelectorAll('#runs .files a')].map((a) => a.href)")
    files = {Path(link.removeprefix("file://")) for link in links}
    assert {file for file in files if file.suffix == ".json"} == set(kept)
    assert all(file.exists() for file in files)


def test_without_results_each_figure_says_so(browser, pages):
    browser.open(pages["empty"])
    for name in ("accuracy", "speed", "memory", "runs"):
        assert "No data yet" in browser.text(f"#{name} .empty")
    assert browser.count("#accuracy .point .open") > 10  # the paper's numbers, hollow
    assert browser.count("#mask svg.grid rect") > 100


def test_a_point_tells_its_values_to_the_mouse_and_to_the_keyboard(page):
    _choose_group(page, "tiny, multikey, 1,024 tokens")
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


def _choose_group(page, start, panel="accuracy", place=0):
    value = page.run(
        f"[...document.querySelectorAll('#{panel} select')[{place}].options]"
        f".find((o) => o.value.startsWith({json.dumps(start)})).value"
    )
    page.run(
        f"(() => {{ const s = document.querySelectorAll('#{panel} select')[{place}];"
        f" s.value = {json.dumps(value)};"
        " s.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )
    page.settle()


def _marks(page, panel="accuracy"):
    return page.count(f"#{panel} .chart .point .mark")


def test_a_tap_shows_a_point_until_the_next(browser, pages):
    browser.open(pages["all"], width=360, height=740, phone=True)
    x, y = browser.run(
        "(() => { const m = document.querySelector('#accuracy .chart .point .mark');"
        " m.scrollIntoView({ block: 'center', behavior: 'instant' });"
        " const b = m.getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    browser.tap(x, y)
    assert "% right" in browser.text("#accuracy .tip")
    assert not browser.run("document.querySelector('#accuracy .tip').hidden")
    browser.click("#accuracy h2")
    assert browser.run("document.querySelector('#accuracy .tip').hidden")


def test_a_series_can_be_hidden_and_shown(page):
    before = _marks(page)
    page.click("#accuracy .legend button", "full")
    assert _marks(page) == before - 1
    assert page.run("document.activeElement.textContent") == "full"  # the focus stays
    assert page.run("document.activeElement.ariaPressed") == "false"
    page.press("Enter")
    assert _marks(page) == before


def test_the_papers_numbers_lie_beside_ours_and_are_told_apart(page):
    _choose_group(page, "tiny, multikey, 1,024 tokens")
    own = _marks(page)
    _choose_group(page, "paper: Qwen3-4B-Thinking-2507, LongMemEval", place=1)
    theirs = page.count("#accuracy .chart .point .open")
    assert _marks(page) == own + theirs
    assert theirs > 20
    assert "not measured here" in page.text("#accuracy .notes")
    assert page.run(
        "[...document.querySelectorAll('#accuracy .segmented button')]"
        ".find((b) => b.textContent === 'seconds').disabled"
    )


def test_runs_that_may_have_shared_a_machine_are_priced_by_arithmetic(page):
    _choose_group(page, "tiny, multikey, 2,048 tokens")
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
    for width in (1200, 390):
        browser.open(pages["committed"], width=width, phone=width < 500)
        assert browser.text('#accuracy .segmented [aria-pressed="true"]') == "FLOPs, full = 1"
        named = "[...document.querySelectorAll('#accuracy .front-list strong')].map(textOf)"
        drawn = "[...document.querySelectorAll('#accuracy .labels text')].map(textOf)"
        texts = [
            browser.run(one.replace("textOf", "(n) => n.textContent")) for one in (named, drawn)
        ]
        assert len(texts[0]) > 2
        assert set(texts[0]) <= set(texts[1])


def test_one_answer_of_several_runs_is_one_point(browser, tmp_path):
    one = runs.gathered()
    again = dataclasses.replace(one, config=one.config | {"model_revision": "b"})
    runs.write([one, again], tmp_path / "results")
    browser.open(write_report(tmp_path / "results", tmp_path / "page.html").path)
    assert _marks(browser) == 2
    assert browser.count("#accuracy .provenance li li") == 2  # both files are named


def test_whiskers_are_the_intervals(page):
    _choose_group(page, "tiny, multikey, 2,048 tokens")
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
    _choose_group(page, "tiny, needle in 512 tokens")
    page.click("#accuracy .segmented button", "KV, full = 1")
    page.click("#accuracy .segmented button", "of full attention")
    assert "full attention = 100 %" in page.text("#accuracy .axis-name")
    page.run("document.querySelector('#accuracy .chart svg').focus()")
    page.press("Home")
    assert "10.00 MiB of keys and values" in page.text("#say")
    _choose_group(page, "tiny, tuned")
    assert "KV, full = 1" in page.text('#accuracy .segmented [aria-pressed="true"]')


def test_tasks_that_count_parts_of_answers_have_a_mean_score(page):
    _choose_group(page, "tiny, multikey, 2,048 tokens")
    page.click("#accuracy .segmented button", "mean score")
    assert page.text("#accuracy .axis-name") == "↑ mean score (%)"
    assert page.count("#accuracy .point .whisker") == 0
    page.click("#accuracy .segmented button", "of full attention")
    assert "mean score, full attention = 100 %" in page.text("#accuracy .axis-name")
    page.run("document.querySelector('#accuracy .chart svg').focus()")
    page.press("Home")
    assert "mean score 75.0 %" in page.text("#say")
    _choose_group(page, "tiny, needle in 512 tokens")
    assert "mean score" not in page.text("#accuracy .segmented:nth-of-type(2)")


def test_all_series_can_be_hidden(page):
    for panel in ("accuracy", "speed", "memory"):
        while page.count(f"#{panel} .legend button[aria-pressed=true]"):
            page.click(f"#{panel} .legend button[aria-pressed=true]")
        assert page.text(f"#{panel} .empty").startswith("Every series is hidden")


def test_speed_can_be_seen_as_a_ratio_to_full_attention(page):
    _choose_group(page, "prefill, attention of one layer", "speed")
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
    _choose_group(page, "share of Amdahl's limit reached, first token", "speed")
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
    _choose_group(page, "KV after the prompt", "memory")
    _choose_group(page, "qwen3-4b", "memory", 1)
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
            _choose_group(browser, f"{model}, ", panel, 1)
            assert f" · {model}, " in browser.text(f"#{panel} .chosen")
            files = browser.text(f"#{panel} .provenance").splitlines()
            assert len(files) == 1
            assert f"{model}-" in files[0]


def test_two_runs_of_one_model_are_told_apart(browser, tmp_path):
    """Their lines would run to and fro between the runs' values."""
    again = runs.generate()
    again = dataclasses.replace(again, config=again.config | {"repeats": 9})
    runs.write([runs.generate(), again], tmp_path / "results")
    browser.open(write_report(tmp_path / "results", tmp_path / "page.html").path)
    options = browser.run(
        "[...document.querySelectorAll('#speed select')[1].options].map((o) => o.value)"
    )
    names = {path.name for path in (tmp_path / "results").rglob("*.json")}
    assert {option.rpartition(", ")[2] for option in options} == names
    assert _marks(browser, "speed") == 6  # three series at two lengths, of one run


def test_a_single_length_is_drawn_as_bars(page):
    _choose_group(page, "KV after the prompt", "memory")
    _choose_group(page, "tiny, bfloat16, A CPU", "memory", 1)
    assert page.text("#memory .bars li:last-child").split("\n")[-2:] == ["10.00 MiB", "4.00x"]
    page.click("#memory .numbers summary")
    assert "10,485,760" in page.text("#memory .numbers tbody tr:last-child")


def test_runs_are_filtered_sorted_and_opened(page):
    assert page.count("#runs tr.run") == len(runs.all_runs())
    page.choose("#runs select", "eval")
    assert page.count("#runs tr.run") == 3
    assert page.text("#runs .count") == f"3 of {len(runs.all_runs())} runs"
    page.choose('#runs input[type="search"]', "1024 fast")
    assert page.count("#runs tr.run") == 1
    page.choose('#runs input[type="search"]', "")
    page.choose("#runs select", "")
    page.click("#runs thead button", "Tokens")
    tokens = "[...document.querySelectorAll('#runs tr.run .tokens')].map((c) => c.textContent)"
    order = page.run(tokens)
    page.click("#runs thead button", "Tokens")
    assert page.run(tokens)[0] == order[-1] == "131,072"
    assert (
        page.run("document.querySelector('#runs [aria-sort=descending]').textContent") == "Tokens"
    )
    page.choose("#runs select", "kernels")
    page.click("#runs .files button")
    assert "swaa triton" in page.text("#runs .more table")
    page.click("#runs .more summary")
    assert '"head_dim": 64' in page.text("#runs .more pre")


@pytest.mark.parametrize("name", ["all", "committed"])
@pytest.mark.parametrize("width", [390, 800, 961, 1200])
def test_the_table_of_runs_fits(browser, pages, name, width):
    browser.open(pages[name], width=width, phone=width < 500)
    sizes = browser.run(
        "[...document.querySelectorAll('#runs .runs, #runs .runs td')]"
        ".map((n) => [n.scrollWidth, n.clientWidth])"
    )
    assert [one for one in sizes if one[0] > one[1]] == []
    browser.click("#runs .files button")
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.text("#runs .more").count("python 3") == 1


def test_many_marks_are_folded_away_on_a_phone(browser, pages):
    heights = {}
    for width in (390, 1200):
        browser.open(pages["committed"], width=width, phone=width < 500)
        heights[width] = browser.run("document.querySelector('#accuracy .marks').offsetHeight")
    assert heights[390] < 60 < heights[1200]
    browser.open(pages["committed"], width=390, phone=True)
    browser.click("#accuracy .marks summary")
    before = _marks(browser)
    browser.click("#accuracy .legend button", "full")
    assert _marks(browser) == before - 1
    assert browser.run("document.querySelector('#accuracy .marks').open")  # drawn anew, still open


def test_problems_are_listed(browser, tmp_path):
    runs.write(runs.all_runs(), tmp_path / "results")
    (tmp_path / "results/kernels/broken.json").write_text("{", "utf-8")
    browser.open(write_report(tmp_path / "results", tmp_path / "page.html").path)
    assert browser.text("#problems h2") == "One file needs a look"
    assert browser.text("#problems li").startswith("kernels/broken.json: is not JSON")
    assert browser.count("#runs tr.run") == len(runs.all_runs())


def test_every_control_is_reached_by_tab_and_shows_it(page):
    page.run("document.body.focus()")
    reached = 0
    for _ in range(12):
        page.press("Tab")
        outline = page.run("getComputedStyle(document.activeElement).outlineStyle")
        reached += outline == "solid"
    assert reached == 12


def test_the_theme_can_be_chosen(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.click("#theme")
    assert page.run(ground) == light
    page.click("#theme")
    assert page.text("#theme") == "Theme: dark"
    assert page.run(ground) != light


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_are_legible(browser, pages, dark):
    browser.open(pages["all"], dark=dark)
    contrasts = browser.run(
        """[".lead", ".facts dt", "a", ".axis-name", ".provenance", ".legend button", ".about"]
        .map((selector) => {
          const clear = "rgba(0, 0, 0, 0)";
          const light = (colour) => {
            const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => {
              const c = v / 255;
              return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
          };
          let node = document.querySelector("main " + selector);
          const text = light(getComputedStyle(node).color);
          while (getComputedStyle(node).backgroundColor === clear) node = node.parentNode;
          const ground = light(getComputedStyle(node).backgroundColor);
          return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
        })"""
    )
    assert min(contrasts) > 4.5  # WCAG 2, AA


def test_the_page_can_be_printed(page, tmp_path):
    page.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    page.call("Emulation.setEmulatedMedia", media="print")
    shown = page.run(
        "[...document.querySelectorAll('.controls, header')]"
        ".some((node) => getComputedStyle(node).display !== 'none')"
    )
    page.call("Emulation.setEmulatedMedia", media="")
    assert not shown
