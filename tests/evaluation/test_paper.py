import json
import os
import stat
import subprocess

import pytest

from swaa import cli
from swaa.config import SWAAConfig
from swaa.evaluation.paper import TABLES, TASKS, read_table
from swaa.evaluation.tasks import longbench_v2


def _choices(path):
    rows = [
        {
            "context": "words " * 20,
            "question": f"Which, of {number}?",
            **{f"choice_{letter}": letter for letter in "ABCD"},
            "answer": "C",
        }
        for number in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _row(table, **knobs):
    config = SWAAConfig(**knobs)
    return next(row for row in table.untrained if row.config == config)


def test_numbers_are_the_papers():
    first = read_table(1, thinking=True)
    assert (len(first.rows), len(first.untrained)) == (35, 24)
    assert _row(first, window=None).accuracy == (73.0, 34.6, 85.6)
    odd = {"full_layers": "odd", "sink_tokens": 100, "full_decode": True}
    assert _row(first, window=4000, **odd).accuracy == (73.0, 33.4, 65.4)
    instruct = read_table(1, thinking=False)
    assert _row(instruct, window=2000, **odd).accuracy == (50.6, 31.8, 78.8)
    third = read_table(3, thinking=False)
    even = {"full_layers": "even", "sink_tokens": 100, "full_decode": True}
    assert _row(third, window=4000, **even).accuracy == (64.4, 35.9, 99.0)
    fourth = read_table(4, thinking=False)
    assert (len(fourth.rows), fourth.ruler_tokens) == (15, 32_768)
    assert _row(fourth, window=4000, **even).accuracy == (44.0, 30.9, 52.4)


@pytest.mark.parametrize("number", TABLES)
def test_every_row_has_a_name_of_its_own(number):
    table = read_table(number, thinking=False)
    names = [row.name for row in table.untrained]
    assert len(set(names)) == len(names)
    assert all(len(row.accuracy) == len(TASKS) == len(table.columns) for row in table.rows)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_list_of_runs_runs_every_row(tiny, tmp_path, capsys, umask):
    before = os.umask(umask)
    code = cli.main(["eval", "some/tiny", "--paper-table", "1", "--results", "out"])
    os.umask(before)
    assert code == 0
    assert "runs: paper-table-1-tiny/runs.sh" in capsys.readouterr().out
    mode = stat.S_IMODE((tmp_path / "paper-table-1-tiny" / "runs.sh").stat().st_mode)
    assert mode == 0o777 & ~umask
    said = tmp_path / "said"
    stub = tmp_path / "bin" / "swaa"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {said}\n')
    stub.chmod(0o755)
    env = {
        "PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}",
        "LONGMEMEVAL": "lme.json", "JUDGE_ENDPOINT": "http://j/v1", "JUDGE_MODEL": "m",
    }  # fmt: skip
    words = ["paper-table-1-tiny/runs.sh", "--batch-size", "8"]
    subprocess.run(words, check=True, env=env, timeout=300)
    memory, ruler, shown = (line.split() for line in said.read_text().splitlines())
    assert memory[:3] == ruler[:3] == ["eval", "some/tiny", "--recipes"]
    recipes = ruler[3].split(",")
    table = read_table(1, thinking=False)
    assert recipes[0] == "full"
    configs = [SWAAConfig.load(tmp_path / path) for path in recipes[1:]]
    assert configs == [row.config for row in table.untrained[1:]]
    assert "longmemeval:10:lme.json" in memory
    assert ruler[4:] == [
        "--results", "out", "--tasks", "ruler:niah_multiquery", "--lengths", "131072",
        "--samples", "500", "--batch-size", "8",
    ]  # fmt: skip
    assert shown == ["eval", "some/tiny", "--paper-table", "1", "--results", "out"]


def test_what_is_measured_stands_beside(tiny, tmp_path, capsys, refusal, prints, monkeypatch):
    _choices(tmp_path / "lb.jsonl")
    table = read_table(1, thinking=False)
    odd = next(row for row in table.untrained if row.name == "2000-odd")
    odd.config.save(tmp_path / "mine.json")
    words = ["--tasks", "longbench_v2:lb.jsonl", "--lengths", "none", "--samples"]
    assert "tiny sees 2048 at once" in refusal(
        "eval", "tiny", "--recipes", "mine.json,full", *words, "1"
    )
    # A random model never ends an answer: five of 2,000 tokens would show nothing more.
    monkeypatch.setattr(longbench_v2, "MAX_NEW_TOKENS", 16)
    for count, recipes in (("1", "mine.json"), ("2", "mine.json,full")):
        assert cli.main(["eval", "tiny", "--recipes", recipes, *words, count, "--gather"]) == 0
    capsys.readouterr()
    rows = json.loads(prints("eval", "tiny", "--paper-table", "1", "--json"))["rows"]
    here = {(row["setting"], row["trained"]): row["here"]["longbench_v2"] for row in rows}
    filled = {key for key, one in here.items() if one}
    assert filled == {("2000-odd", False), ("full", False)}
    assert here["2000-odd", False]["samples"] == 2
    assert all(row["here"]["longmemeval"] is None for row in rows)
    assert cli.main(["eval", "tiny", "--paper-table", "1"]) == 0
    (line,) = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("window 2000, 0 sinks, full layers odd  ") and " no " in line
    ]
    assert "0.0 (0.0 to 65.8, 2)" in line
    rows = json.loads(prints("eval", "tiny", "--paper-table", "1", "--thinking", "--json"))["rows"]
    assert not any(one for row in rows for one in row["here"].values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["2"], "the paper's table 2 has no accuracies; give one of 1, 3 and 4"),
        (["4", "--thinking"], "table 4 is of Llama-3.1-8B-Instruct, which does not think first"),
        (["1", "--window", "512"], "--window does nothing with --paper-table, which runs nothing"),
        (["1", "--recipes", "full"], "--recipes does nothing with --paper-table"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_named(tiny, refusal, words, message):
    assert message in refusal("eval", "tiny", "--paper-table", *words)
