"""The page as people use it, in a headless Chromium without a network."""

import dataclasses

import pytest

from swaa.report import write_report
from tests.report import runs


@pytest.mark.parametrize("name", ["all", "committed", "empty"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_opens_without_a_word_on_the_console(browser, pages, name, dark, width, tmp_path):
    browser.open(pages[name], width=width, height=740, dark=dark, phone=width < 500)
    assert browser.console == []
    assert browser.requests == [pages[name].as_uri()]
    assert browser.run("document.documentElement.scrollWidth") == width  # nothing sticks out
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_without_results_each_figure_says_so(browser, pages):
    browser.open(pages["empty"])
    for name in ("quality", "speed", "memory", "training", "runs"):
        assert "No data yet" in browser.text(f"#{name} .empty")
    assert len(browser.marks()) > 10  # the paper's numbers
    assert browser.text("#tiles").count("not measured") == 3
    assert browser.count("#mask svg.grid rect") > 100


def test_the_page_opens_with_its_conclusion(browser, pages):
    browser.open(pages["committed"])
    titles = browser.run("[...document.querySelectorAll('#tiles h2')].map((n) => n.innerText)")
    assert titles == ["Recipe to start with", "Quality kept", "Time to first token", "KV cache"]
    assert browser.run("document.querySelector('#tiles').getBoundingClientRect().bottom") < 500
    assert browser.run("document.querySelector('#tiles a').href").endswith(".json")


def test_a_choice_keeps_the_focus(page):
    page.run("document.querySelector('#quality select').focus()")
    for group in ("tiny, multikey, 2,048", "tiny, needle"):
        page.pick("quality", "group", group)
        assert page.run("document.activeElement.name") == "group"


def test_each_model_is_named_once(browser, tmp_path):
    named = [
        dataclasses.replace(
            run,
            config={**run.config, "model": name},
            provenance=runs.provenance(model=name),
        )
        for run, name in (
            (runs.demo(), "small.Q4_1"),
            (runs.evaluation("fast", runs.SLIDING, 8), "small.Q4_1.gguf"),
            (runs.vllm(), "a shape, random weights"),
        )
    ]
    runs.write(named, tmp_path / "results")
    browser.open(write_report(tmp_path / "results", tmp_path / "page.html").path)
    assert "\nsmall.Q4_1; a shape, random weights\n" in browser.text("#facts")
    subjects = "[...document.querySelectorAll('#runs select')[1].options].map((o) => o.text)"
    assert browser.run(subjects) == ["all", "a shape, random weights", "small.Q4_1"]
    assert ".gguf" not in browser.run(
        "[...document.querySelectorAll('option')].map((o) => o.text).join()"
    )


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
        """[".lead", ".facts dt", "a", ".tile p", ".provenance", ".notes", ".about"]
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
