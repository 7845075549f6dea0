"""Tuning on several kinds of questions, and what one that was tuned on one kind says of others."""

import dataclasses
import json
import types

import pytest

from swaa.cli import main, tune_tables
from swaa.config import SWAAConfig
from swaa.evaluation.prompt import Prompt
from swaa.results import load
from swaa.selection import report, verify
from swaa.selection.budget import Cost
from swaa.selection.report import Point, choose, kept, kept_by_task, lost, unmeasurable
from swaa.selection.tuning import Tuning
from tests.selection.conftest import write_lines

KINDS = ["multikey", "multiquery:2", "variable_tracking", "continuation"]


@pytest.fixture
def words(checkpoint, tmp_path):
    def words(*more):
        return [
            *("tune", str(checkpoint), "--length", "640", "--batch-size", "4"),
            *("--samples", "4", "--held-out", "4", "--keep", "0.01"),
            *("--window", "70", "--sink-tokens", "2", "--dense-tail", "4"),
            *("--budget", "layers=1/4", "--method", "far_attention"),
            *("--results", str(tmp_path / "results"), "--out", str(tmp_path / "tuned.json")),
            *more,
        ]

    return words


def test_without_data_the_mixture_is_tuned_on_and_reported_at_both_lengths(tmp_path, capsys, words):
    assert main(words("--baselines", "odd,middle")) == 0
    captured = capsys.readouterr()
    (file,) = (tmp_path / "results" / "tune").glob("*-mixture-tune-*.json")
    rows = load(file).rows
    chosen = [row for row in rows if row["source"] == "far_attention"]
    assert [(row["task"], row["role"], row["length"]) for row in chosen] == [
        *((kind, "held out", 640) for kind in KINDS),
        *((kind, "longer", 960) for kind in KINDS),
    ]
    assert {row["recipe"] for row in rows if row["role"] == "longer"} == {
        "full",
        chosen[0]["recipe"],
    }
    names = {name for row in rows for name in (row["recipe"], *row["also"])}
    assert {"middle:1of4 layers=1of4", "tuned layers=1of4"} <= names
    assert not any(name.startswith(("every", "kl", "first")) for name in names)
    texts = {row["recipe"]: row for row in rows if row["task"] == "continuation"}
    assert texts["full"]["score"] == 1.0
    assert all("right" not in row and 0 <= row["low"] <= row["high"] for row in texts.values())
    assert 0 < texts[chosen[0]["recipe"]]["score"] < 1
    # A random model answers nothing: that is said, and only text decides.
    for kind in KINDS[:3]:
        line = f"swaa tune: {kind}: not measurable, full attention itself answers 0 of 4"
        assert line in captured.err.splitlines()
    recipe = json.loads((tmp_path / "tuned.json").read_text())
    assert "% on continuation of full attention's score" in recipe["description"]
    assert len(recipe["provenance"]["measured_on"]) == 8
    assert "held out, 960 tokens, continuation: " in captured.out
    assert "not tuned on" not in captured.out


def test_what_was_not_tuned_on_is_measured_at_the_end(capsys, prints, monkeypatch, words):
    monkeypatch.setattr(verify, "MIXTURE", ("multikey", "multiquery:2"))
    data = ("--data", "continuation", "--data", "multiquery:3")
    printed = json.loads(prints(*words(*data, "--json")))
    others = [row for row in printed["rows"] if row["role"] == "other"]
    assert [(row["recipe"], row["task"], row["length"]) for row in others] == [
        ("full", "multikey", 640),
        ("tuned layers=1of4", "multikey", 640),
    ]
    assert "Not tuned on: multikey: not measurable" in printed["recipe"]["description"]
    assert main(words("--data", "multikey", "--keep-mean")) == 2
    assert "full attention itself answers none" in capsys.readouterr().err.splitlines()[-1]


def test_kinds_whose_prompts_do_not_fit_are_named(tmp_path, capsys, words):
    lines = [{"prompt": f"{i} the river ran " * 12, "max_new_tokens": 2} for i in range(9)]
    data = write_lines(tmp_path / "my.jsonl", lines)
    assert main(words("--data", str(data))) == 0
    captured = capsys.readouterr()
    notes = [line for line in captured.err.splitlines() if ": not measured" in line]
    assert len(notes) == 4
    assert "swaa tune: multikey: not measured, a prompt of" in notes[0]
    assert "continuation: 4 texts of" in notes[3]
    assert "LOST" not in captured.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--baselines", "odd,bogus"], "unknown baseline 'bogus'; give some of all, odd, even,"),
        (["--window", "700"], "fit into 700 keys and 2 sinks, where every layer sees everything"),
        (["--length", "1025", "--data", "continuation"], "texts of 1025 tokens;"),
        (["--data", "continuation", "--length", "100"], "of 100 tokens; the novel's"),
    ],
)
def test_mistakes_are_one_line(capsys, more, message, words):
    assert main(words(*more)) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("swaa tune:")]
    assert len(err) == 1
    assert message in err[0]


def test_a_tuning_needs_something_to_tune_on(loaded):
    prompt = Prompt(tokenizer=loaded.tokenizer)
    with pytest.raises(ValueError, match="there is nothing to tune on; give tasks"):
        Tuning(tasks=(), prompt=prompt, base=SWAAConfig(window=8))
    with pytest.raises(ValueError, match="running text is made to a length; say of how many"):
        Tuning(tasks=(), continuation=True, prompt=prompt, base=SWAAConfig(window=8))


def _point(name, spent, **scores):
    return Point(
        name=name,
        source="search",
        config=SWAAConfig(window=8),
        cost=Cost(0, 0, spent, spent),
        nll=1.0,
        kl=0.0,
        exact=0.0,
        scores={"multikey": [1, 1, 1, 1], "variable_tracking": [1, 1, 1, 0], **scores},
    )


FULL = dataclasses.replace(_point("full", 1.0, variable_tracking=[1] * 4), source="full")
NARROW = _point("narrow", 0.2, variable_tracking=[0, 0, 0, 0])
BROAD = _point("broad", 0.5)


def test_every_task_must_be_kept_unless_the_mean_is_enough():
    assert choose([NARROW, BROAD], FULL, 0.5) is BROAD
    assert choose([NARROW, BROAD], FULL, 0.5, average=True) is NARROW
    assert (kept(BROAD, FULL), kept(BROAD, FULL, average=True)) == (0.75, 0.875)
    with pytest.raises(
        ValueError, match=r"keeps 95% of .* on every task .* the best, broad .* 75%"
    ):
        choose([NARROW, BROAD], FULL, 0.95)
    with pytest.raises(ValueError, match=r"75% of variable_tracking: raise --budget"):
        choose([NARROW, BROAD], FULL, 0.95)
    with pytest.raises(ValueError, match=r"as the tasks' mean .* 88%: raise --budget"):
        choose([NARROW, BROAD], FULL, 0.95, average=True)


def test_what_full_attention_does_not_answer_decides_nothing():
    full = dataclasses.replace(FULL, scores=FULL.scores | {"variable_tracking": [0.4] * 4})
    assert kept_by_task(NARROW, full) == {"multikey": 1.0}
    assert choose([NARROW, BROAD], full, 0.95) is NARROW
    said = "variable_tracking: not measurable, full attention itself answers 0 of 4"
    assert unmeasurable(full) == [said]
    assert report.counts(NARROW, full)[1].endswith(": not measurable")
    # A tenth must be answered: one of eleven says nothing, two of eleven do.
    for right, known in ((1, False), (2, True)):
        bits = [1.0] * right + [0.0] * (11 - right)
        few = dataclasses.replace(FULL, scores={"multikey": bits})
        assert bool(kept_by_task(few, few)) is known


def test_what_was_lost_is_one_line_the_worst_first():
    others = {"variable_tracking": [1.0] * 12 + [0.0], "continuation": [1.0] * 13}
    full = dataclasses.replace(FULL, others=others | {"needle": [0.0] * 13})
    ours = {"variable_tracking": [1.0] + [0.0] * 12, "continuation": [0.97] * 13}
    found = dataclasses.replace(NARROW, others=ours | {"needle": [0.0] * 13})
    assert lost(found, full) == (
        "variable_tracking: 8 % kept (1 of 13 right, full attention 12 of 13);"
        " continuation: 97 % kept;"
        " needle: not measurable, full attention itself answers 0 of 13"
    )


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (
            1,
            "LOST on questions that were not tuned on: variable_tracking: 10 % kept (1 of",
        ),
        (10, "on questions that were not tuned on: variable_tracking: 100 % kept (10 of"),
    ],
)
def test_a_loss_is_called_one_at_the_end(capsys, right, said):
    full = dataclasses.replace(FULL, others={"variable_tracking": [1.0] * 10})
    bits = [1.0] * right + [0.0] * (10 - right)
    found = dataclasses.replace(NARROW, others={"variable_tracking": bits})
    tuned = types.SimpleNamespace(points=(full, found))
    tune_tables._print_lost(types.SimpleNamespace(keep=0.95), tuned, found)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(said)
    assert line.endswith("to tune on them too)") == (right == 1)
