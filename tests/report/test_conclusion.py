"""The four tiles that the page opens with."""

import dataclasses

import pytest

from swaa.config import SWAAConfig
from swaa.report.conclusion import conclude
from swaa.report.figures import Answers, Figures, Measurement


def _answers(group, shares, samples=100):
    return Figures(
        subject="a model",
        answers=tuple(
            Answers(
                group=group,
                setting=name,
                detail=name,
                accuracy=share,
                count="",
                samples=samples,
                full=name == "full",
            )
            for name, share in shares.items()
        ),
    )


def _speeds(tokens, values, measure="time to first token", unit="s"):
    shared = {"chart": "speed", "unit": unit, "group": "a GPU", "tokens": tokens}
    return Figures(
        subject="a model",
        measurements=tuple(
            Measurement(
                measure=measure, series=name, value=value, full=name.startswith("stock"), **shared
            )
            for name, value in values.items()
        ),
    )


def _texts(figures):
    return {tile.title: (tile.value, tile.text) for tile in conclude(figures).tiles}


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        # fast is cheaper than balanced, selected and quality; 95 % is enough.
        ({"fast": 0.78, "balanced": 0.8, "quality": 0.8}, "fast"),
        ({"fast": 0.7, "balanced": 0.77, "quality": 0.8}, "balanced"),
        # Equally cheap: what keeps more.
        ({"balanced": 0.77, "selected": 0.79}, "selected"),
        ({"fast": 0.1, "balanced": 0.3, "quality": 0.2}, "balanced"),
        ({"a setting of mine": 0.8}, ""),
    ],
)
def test_the_cheapest_recipe_that_keeps_enough_is_recommended(shares, expected):
    found = conclude([_answers("g", {"full": 0.8, **shares})])
    assert found.recipe == expected
    assert found.tiles[0].value == (expected or "not known")


def test_quality_is_over_all_comparisons_each_once():
    one = _answers("g", {"full": 0.8, "fast": 0.8})
    other = _answers("h", {"full": 1.0, "fast": 0.95}, samples=20)
    alone = _answers("without full attention", {"fast": 0.1})
    value, text = _texts([one, one, other, alone])["Quality kept"]
    assert value == "99 %"
    assert text == (
        "With fast, 99 of 120 prompts get the right answer; full attention gets 100"
        " (2 tasks and lengths, a model)."
    )


def test_speed_and_memory_are_those_of_the_longest_prompt_next_to_the_best_stock():
    kept, planned = "KV after the prompt", "KV after the prompt, as planned (arithmetic)"
    kv = {"stock": 4 * 2**30, "fast": 2**30, "naive": 2**28}
    figures = [
        _answers("g", {"full": 0.8, "fast": 0.8}),
        _speeds(1024, {"stock": 1.0, "fast": 0.9}),
        _speeds(8192, {"stock: slow": 9.0, "stock: quick": 6.0, "fast": 2.0}),
        _speeds(8192, kv, kept, "B"),
        _speeds(
            9999,
            kv | {"fast": 1.0},
            planned,
            "B",
        ),
    ]
    tiles = {tile.title: tile for tile in conclude(figures).tiles}
    first = tiles["Time to first token"]
    assert (first.value, first.run) == ("3.0x faster", 2)
    assert first.text.startswith(
        "With fast, 2 s instead of 6 s for a prompt of 8,192 tokens (a GPU)"
    )
    memory = tiles["KV cache"]
    assert (memory.value, memory.run) == ("25 % of full", 3)
    assert "1.00 GiB are held after 8,192 tokens; full attention holds 4.00 GiB." in memory.text
    assert memory.text.endswith("The least here: naive, 256.0 MiB.")


def test_of_speeds_alone_the_quickest_recipe_is_told():
    found = conclude([_speeds(1024, {"stock": 1.0, "fast": 0.5, "balanced": 0.7})])
    assert found.recipe == "fast"
    assert [tile.value for tile in found.tiles] == [
        *("not known", "not measured", "2.0x faster", "not measured")
    ]


def test_what_was_not_measured_names_the_command_that_does():
    texts = _texts([])
    assert {value for value, _ in texts.values()} == {"not known", "not measured"}
    assert all("swaa " in text for _, text in texts.values())


def test_a_lone_recipe_is_not_called_the_best():
    (start, *_) = conclude([_answers("g", {"full": 0.8, "fast": 0.4})]).tiles
    assert "the only shipped recipe that was measured here" in start.text
    assert dataclasses.asdict(start)["run"] is None
    assert SWAAConfig(window=2048).describe().partition(",")[0] in start.text
