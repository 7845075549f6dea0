"""The page's mask explorer against the rule of the mask, in a headless Chromium."""

import json
import random

import pytest
import torch

from swaa.attention.mask import left_bounds, visible
from swaa.config import SWAAConfig
from swaa.plan import visible_pairs
from swaa.recipes import list_recipes


def _config(numbers):
    rules = ("odd", "even", "every:3", "every:4+1", "first:1/3", "middle:1/2", "last:0.4")
    layers = [(), (0, 2, 5), *rules]
    window = numbers.choice([None, 1, 2, 3, 5, 8, 13, 40])
    if window is None:
        return SWAAConfig(window=None)
    return SWAAConfig(
        window=window,
        sink_tokens=numbers.choice([0, 0, 1, 2, 5, 20]),
        full_layers=numbers.choice(layers),
        full_decode=numbers.choice([True, False, *layers[1:]]),
        dense_tail=numbers.choice([0, 0, 1, 4, 9, 50]),
    )


def _mask(plan, prompt, total):
    """The mask of mask.py, as rows of 0 and 1."""
    positions = torch.arange(total)[None]
    first, until = plan.full_rows(prompt)
    left = left_bounds(positions, window=plan.window, full_from=first, full_until=until)
    return visible(positions, positions, left, sink_tokens=plan.sink_tokens)[0].int()


def test_the_pages_mask_is_the_mask(page):
    numbers = random.Random(0)
    cases = []
    for _ in range(400):
        prompt = numbers.randint(1, 24)
        total = prompt + numbers.choice([0, 0, 1, 5])
        cases.append((_config(numbers), numbers.randint(6, 9), prompt, total))
    code = """
      ((cases) => cases.map(([config, layers, prompt, total]) =>
        layerPlans(config, layers).map((plan) => ({
          rows: Array.from({ length: total }, (_, i) => {
            const seen = visibleSpans(plan, i, prompt);
            return Array.from({ length: total }, (_, j) =>
              seen.some(([first, end]) => j >= first && j < end) ? 1 : 0).join("");
          }),
          blocks: blockCounts(plan, prompt, total, 3),
          pairs: visiblePairs(plan, prompt, 0, prompt),
          kept: keptTokens(plan, prompt),
        }))))
    """
    given = [[config.to_dict(), *sizes] for config, *sizes in cases]
    found = page.run(f"{code}({json.dumps(given)})")
    for (config, layers, prompt, total), answer in zip(cases, found, strict=True):
        for plan, one in zip(config.layers(layers), answer, strict=True):
            mask = _mask(plan, prompt, total)
            rows = ["".join(map(str, row)) for row in mask.tolist()]
            assert one["rows"] == rows, (config, plan, prompt)
            assert one["pairs"] == visible_pairs(plan, prompt, 0, prompt)
            padded = torch.nn.functional.pad(mask, (0, -total % 3, 0, -total % 3))
            blocks = padded.unflatten(1, (-1, 3)).sum(2).unflatten(0, (-1, 3)).sum(1)
            assert one["blocks"] == blocks.tolist()
            window = prompt if plan.keeps_all_keys else plan.window + plan.sink_tokens
            assert one["kept"] == min(prompt, window)


def test_the_explorer_draws_what_the_knobs_say(page):
    for name, value in (
        *(("window", "5"), ("sink_tokens", "2"), ("full_layers", "last:1/2")),
        *(("full_decode", "1"), ("dense_tail", "3")),
        *(("layers", "4"), ("prompt", "16"), ("generated", "4")),
    ):
        page.choose(f'#mask input[name="{name}"]', value)
    config = SWAAConfig(
        window=5, sink_tokens=2, full_layers="last:1/2", full_decode=(1,), dense_tail=3
    )
    assert page.text("#mask .about") == "Own knobs."
    for layer, plan in enumerate(config.layers(4)):
        page.click("#mask .strip button", str(layer))
        cells = page.run(
            "[...document.querySelectorAll('#mask svg.grid rect')]"
            ".map((c) => [c.dataset.query, c.dataset.key, c.getAttribute('class')])"
        )
        drawn = torch.zeros(20, 20, dtype=torch.int32)
        phases = {}
        for query, key, phase in cells:
            drawn[int(query), int(key)] = 1
            phases[int(query)] = phase
        assert torch.equal(drawn, _mask(plan, 16, 20))
        tail = "prompt" if plan.full else "tail"
        assert [phases[row] for row in (0, 12, 13, 15, 16)] == [
            *("prompt", "prompt"),
            *(tail, tail),
            "generated",
        ]


def test_recipes_can_be_chosen_by_keyboard(page):
    recipe = next(one for one in list_recipes() if one.name == "fast")
    page.choose("#mask select", "fast")
    assert page.text("#mask .about") == recipe.description
    page.run("document.querySelector('#mask .strip [tabindex=\"0\"]').focus()")
    for _ in range(10):
        page.press("ArrowRight")
    assert page.run("document.activeElement.textContent") == "10"
    assert page.text("#mask caption") == "Layer 10: full decode"
    assert "2,048 keys, itself included, and the first 128" in page.text("#mask .phases")
    page.choose('#mask input[name="row"]', "5000")
    said = page.text("#mask output").replace("\N{EN DASH}", " to ")
    assert said.endswith("sees keys 0 to 127 and 2,953 to 5,000: 2,176 of 5,001")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("window", "0", 'window: expected a whole number from 1 to 2,147,483,648, got "0"'),
        ("prompt", "x", 'prompt: expected a whole number from 1 to 262,144, got "x"'),
        ("full_layers", "some", '"some" is not a rule; write odd, even'),
        ("full_decode", "every:2+3", '"every:2+3": write every:4 or every:4+1'),
        ("full_layers", "first:3/2", '"first:3/2" needs a fraction'),
    ],
)
def test_a_wrong_knob_is_one_line(page, name, value, message):
    page.choose(f'#mask input[name="{name}"]', value)
    assert page.text("#mask [role=alert]").startswith(message)
    page.choose("#mask select", "fast")
    if name != "prompt":
        assert page.count("#mask svg.grid rect") > 0


def test_settings_of_the_runs_can_be_explored(page):
    page.choose("#mask select", "found: window 64, 4 sinks, full decode, dense tail 8")
    assert page.run("document.querySelector('#mask input[name=window]').value") == "64"
    assert "64 keys, itself included, and the first 4" in page.text("#mask .phases")
