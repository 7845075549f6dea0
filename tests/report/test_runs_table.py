"""The table of all runs, in a headless Chromium."""

from pathlib import Path

import pytest

from tests.report import runs


def test_every_run_is_in_the_table_with_links_that_lead_somewhere(browser, pages):
    browser.open(pages["committed"])
    kept = sorted((pages["committed"].parent / "committed").rglob("*.json"))
    links = browser.run("[...document.querySelectorAll('#runs .files a')].map((a) => a.href)")
    files = {Path(link.removeprefix("file://")) for link in links}
    assert {file for file in files if file.suffix == ".json"} == set(kept)
    assert all(file.exists() for file in files)


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
    assert "swaa triton" in page.text("#runs .more")
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


def test_rows_that_hold_different_things_have_a_table_each(page):
    page.choose("#runs select", "generate")
    page.click("#runs .files button")
    heads = page.run(
        "[...document.querySelectorAll('#runs .more thead')]"
        ".map((h) => [...h.querySelectorAll('th')].map((c) => c.textContent))"
    )
    assert ["kind"] in heads
    assert ["kind", "prefill"] in heads
    # What names a row stands first; a spread is its median and from where to where it lies.
    (speedups,) = [head for head in heads if "first_token_speedup" in head]
    assert speedups[:3] == ["attention", "kind", "setting"]
    assert "1.000 (0.9000 to 1.100)" in page.text("#runs .more")
