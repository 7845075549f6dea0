import contextlib
import importlib.util
import json
import types

import pytest

from swaa import results
from swaa.adaptation import is_adapted
from swaa.cli import main
from swaa.demo import DemoOptions, demo_settings, doubt, make_needles, run_demo
from swaa.demo import run as demo_run
from swaa.evaluation.prompt import plain_ids
from swaa.evaluation.tasks.haystack import read_filler
from swaa.models import load_model
from tests.checkpoint import save_checkpoint

SMALL = DemoOptions(needles=2, needle_tokens=300, prefill_tokens=400, window=32, seed=3)
SETTINGS = ["full", "naive", "sinks + full decode", "balanced", "fast", "fast, last half"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("models") / "Tiny Model")


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_model(str(checkpoint), device="cpu")


def test_settings_share_the_window_and_are_the_shipped_recipes():
    settings = demo_settings(512)
    assert list(settings) == SETTINGS
    assert settings["full"].window is None
    assert {config.window for name, config in settings.items() if name != "full"} == {512}
    assert settings["sinks + full decode"].dense_tail == 0
    assert settings["fast"].dense_tail > 0


def test_needles_are_the_same_each_time_and_other_for_another_seed(loaded):
    wanted = {"tokens": 300, "count": 3}
    first = make_needles(loaded.tokenizer, **wanted, seed=1)
    assert first == make_needles(loaded.tokenizer, **wanted, seed=1)
    assert first != make_needles(loaded.tokenizer, **wanted, seed=2)


def test_needles_lie_where_they_should(loaded):
    needles = make_needles(loaded.tokenizer, tokens=1000, count=8, seed=0)
    assert len({needle.digits for needle in needles}) == 8
    assert len({needle.document[:40] for needle in needles}) == 8
    for needle in needles:
        assert len(plain_ids(loaded.tokenizer, needle.document)) == pytest.approx(1000, abs=2)
        assert needle.document.count(needle.digits) == 1
        place = needle.document.index("One of the special magic numbers") / len(needle.document)
        assert needle.depth - 0.05 <= place <= needle.depth + 0.06


def test_a_reply_is_right_when_it_holds_the_digits(loaded):
    (needle,) = make_needles(loaded.tokenizer, tokens=300, count=1, seed=0)
    assert needle.is_answered(f"It is {needle.digits}.")
    assert needle.is_answered(f"{int(needle.digits):,}")
    assert not needle.is_answered(needle.digits[:-1])


@pytest.mark.parametrize("tokens", [63, 10**6])
def test_needle_documents_that_cannot_be_made(loaded, tokens):
    with pytest.raises(ValueError, match="expected 64 to"):
        make_needles(loaded.tokenizer, tokens=tokens, count=1, seed=0)


@pytest.mark.parametrize("name", ["needles", "prefill_tokens", "rounds", "window"])
def test_sizes_below_one(name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected at least 1"):
        DemoOptions(**{name: 0})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"prefill_tokens": 10**6}, "the text has"), ({"prefill_tokens": 2000}, "was trained to")],
)
def test_prompts_the_model_cannot_take(loaded, sizes, message):
    with pytest.raises(ValueError, match=message):
        run_demo(loaded, DemoOptions(needle_tokens=300, needles=1, **sizes))


def test_text_is_whole_paragraphs():
    text = read_filler()
    assert text.startswith("Chapter 1\nSir Walter Elliot, of Kellynch Hall")
    assert len(text) > 100_000


def test_every_setting_is_measured_and_the_model_left_as_it_was(loaded):
    steps = []
    outcome = run_demo(loaded, SMALL, on_step=lambda share, what: steps.append((share, what)))
    assert not is_adapted(loaded.model)
    assert [row.setting for row in outcome.rows] == SETTINGS
    rows = {row.setting: row for row in outcome.rows}
    assert rows["full"].speedup == 1
    assert rows["fast"].kv_bytes == rows["full"].kv_bytes
    assert rows["naive"].kv_bytes == rows["full"].kv_bytes * 32 // 400
    assert rows["fast, last half"].kv_bytes < rows["fast"].kv_bytes
    assert all(row.needles == 2 and row.prefill_s > 0 for row in outcome.rows)
    assert len(outcome.samples) == 2 * len(SETTINGS)
    assert [share for share, _ in steps] == sorted(share for share, _ in steps)
    assert steps[0] == (0, "full: needle 1 of 2")
    assert steps[-1][1] == "fast, last half: prefill of 400 tokens, 3 of 3"
    timings = [what for _, what in steps if "prefill" in what]
    assert [what.partition(":")[0] for what in timings] == SETTINGS * 3


def _timed_as(monkeypatch, seconds):
    """Prefills that take what is listed for their setting, round by round."""
    left = {setting: list(values) for setting, values in seconds.items()}
    current = []

    @contextlib.contextmanager
    def adapted(loaded, config):
        names = [name for name, one in demo_settings(32).items() if one == config]
        current[:] = names
        yield

    def generate(loaded, prompt, *, max_new_tokens):
        took = left[current[0]].pop(0) if max_new_tokens == 1 else 1.0
        return types.SimpleNamespace(first_token_s=took, kv_bytes=8, prompt_tokens=4, text="")

    monkeypatch.setattr(demo_run, "_adapted", adapted)
    monkeypatch.setattr(demo_run, "generate_answer", generate)


def test_a_speedup_is_a_ratio_of_medians_and_rounds_show_its_spread(loaded, monkeypatch):
    steady = dict.fromkeys(SETTINGS, (1.0, 3.0, 1.1))
    _timed_as(monkeypatch, steady | {"full": [2.0, 6.0, 2.4], "fast": [1.0, 3.0, 1.2]})
    rows = run_demo(loaded, SMALL).rows
    fast = next(row for row in rows if row.setting == "fast")
    assert (fast.prefill_s, fast.prefill_low_s, fast.prefill_high_s) == (1.2, 1.0, 3.0)
    # A busy second round slows both down: the median does not see it, nor does the ratio.
    assert (fast.speedup, fast.speedup_low, fast.speedup_high) == pytest.approx((2, 2, 2))
    assert doubt(rows) is None


def test_times_that_other_work_decided_are_called_noise(loaded, monkeypatch):
    steady = dict.fromkeys(SETTINGS, (1.0, 1.0, 1.0))
    _timed_as(monkeypatch, steady | {"full": [2.0, 2.0, 2.0], "fast": [1.0, 6.25, 1.0]})
    rows = run_demo(loaded, SMALL).rows
    assert [row.setting for row in rows if row.is_noise] == ["fast"]
    assert doubt(rows) == (
        "the speed-ups mean nothing: fast was 0.32x to 2.00x from round to round, so other work on"
        " this machine decided them; run the demo again when it is idle"
    )


def test_command_writes_table_result_samples_and_picture(checkpoint, capsys, prints, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    # fmt: off
    words = [
        "demo", "--model", str(checkpoint), "--device", "cpu", "--needles", "1", "--needle-tokens",
        "300", "--prefill-tokens", "300", "--rounds", "2", "--window", "32",
        "--out", str(tmp_path / "out"),
    ]
    # fmt: on
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "setting              answered  prefill s  vs full" in captured.out
    assert "vs full: the ratio of medians, and of single rounds." in captured.out
    assert "100 %" not in captured.out  # the bar goes to stderr
    assert "left" in captured.err
    (path,) = (tmp_path / "out" / "demo").glob("tiny-model-*.json")
    result = results.load(path)
    assert result.config["model"] == "Tiny Model"
    assert [row["setting"] for row in result.rows] == SETTINGS
    assert len(results.read_samples(path)) == len(SETTINGS)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(prints(*words, "--json"))["kind"] == "demo"


def test_matplotlib_absent_is_said_before_the_work(monkeypatch, refusal, checkpoint):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install '.[plot]'" in refusal("demo", "--model", str(checkpoint))
