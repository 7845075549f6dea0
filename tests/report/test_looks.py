"""Colours and marks of settings and series, in a headless Chromium."""

import itertools
import json

CHARTS = """[...groupBy(data.answers, (a) => a.group).values()].map((g) => g.map((a) => a.setting))
  .concat([...groupBy(data.measurements, (m) => m.chart + m.measure + m.group).values()]
    .map((g) => g.map((m) => m.series)))"""


def _looks(browser, expression):
    return browser.run(
        "(() => { const data = JSON.parse(byId('data').textContent);"
        f" const looks = looksOf(data); return {expression}; }})()"
    )


def _legends(browser, panel):
    """Colour and mark of each name of a figure, in every group of its last choice, as drawn."""
    selects = f"[...document.querySelectorAll('#{panel} select')]"
    at = 0 if panel == "accuracy" else 1
    found = []
    for value in browser.run(f"[...{selects}[{at}].options].map((o) => o.value)"):
        if value.startswith("paper:"):
            continue
        browser.run(
            f"(() => {{ const s = {selects}[{at}]; s.value = {json.dumps(value)};"
            " s.dispatchEvent(new Event('change', { bubbles: true })); })()"
        )
        found += browser.run(
            f"[...document.querySelectorAll('#{panel} .legend button:not(.every)')].map((b) =>"
            " [b.textContent, b.querySelector('.point').getAttribute('style'),"
            " b.querySelector('.mark').getAttribute('d')])"
        )
    return found


def test_a_name_has_one_colour_and_mark_in_every_chart(browser, pages):
    browser.open(pages["committed"])
    drawn = [one for panel in ("accuracy", "speed", "memory") for one in _legends(browser, panel)]
    by_name = {}
    for name, *look in drawn:
        by_name.setdefault(name, set()).add(tuple(look))
    assert len(drawn) > len(by_name) > 40
    assert {name: looks for name, looks in by_name.items() if len(looks) > 1} == {}
    ink = {name for name, looks in by_name.items() if next(iter(looks))[0] == "color:var(--full)"}
    assert "full" in ink
    assert len(ink) > 1
    assert _looks(browser, "looks.get('stock') === looks.get('full')")
    assert all(name == "full" or name.startswith("stock") for name in ink)
    assert len(set.union(*(by_name[name] for name in ink))) == 1


def test_no_two_names_of_a_chart_look_alike(browser, pages):
    browser.open(pages["committed"])
    found = _looks(
        browser, f"{CHARTS}.map((names) => [...new Set(names)].map((n) => looks.get(n)))"
    )
    for chart in found:
        looks = [(look["colour"], look["shape"]) for look in chart]
        assert len(set(looks)) == len(looks)
        # In a small chart, colours differ too.
        colours = [colour for colour, _ in looks]
        if len(looks) <= 6:
            assert len(set(colours)) == len(colours)


def test_several_full_attentions_of_one_chart_are_told_apart(page):
    names = ("SDPA (full)", "FA4 (full)", "full")
    looks = [json.dumps(_looks(page, f"looks.get({name!r})")) for name in names]
    assert all(a != b for a, b in itertools.combinations(looks, 2))
