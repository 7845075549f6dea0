"""Runs of `swaa bench generate` that a time limit or an interruption cuts, and the runs behind."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from swaa import cli, results
from swaa.benchmark.generate import measure as generate
from swaa.benchmark.unfinished import not_begun, rows_to_keep

ROWS = 3  # of a size: no attention, stock and one recipe


class Runs:
    """Prompt lengths of the rows that were run; each takes ten seconds of a clock of its own."""

    def __init__(self, monkeypatch):
        self.lengths = []
        self.interrupt_at = None
        self._measure = generate.measure_run
        monkeypatch.setattr(generate, "measure_run", self._run)
        clock = SimpleNamespace(perf_counter=lambda: 10.0 * len(self.lengths))
        monkeypatch.setattr(generate, "time", clock)

    def _run(self, model, plans, work, recorder):
        if len(self.lengths) == self.interrupt_at:
            raise KeyboardInterrupt
        self.lengths.append(work.tokens)
        return self._measure(model, plans, work, recorder)


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.setattr(results, "_checkout", lambda: ("a" * 40, False))
    return Runs(monkeypatch)


@pytest.fixture
def bench(tmp_path, runs):
    words = ["bench", "generate", "tiny", "--lengths", "40,50", "--new-tokens", "2", "--dtype"]
    words += ["float32", "--no-compile", "--repeats", "1", "--recipes", "naive window=8"]
    words += ["--output", str(tmp_path)]

    def bench(*more):
        runs.lengths.clear()
        return cli.main([*words, *more])

    return bench


def _kept(tmp_path):
    return results.load(next(tmp_path.glob("generate/*.json")))


def test_rows_that_a_time_limit_cut_are_measured_by_the_next_run(tmp_path, runs, bench, capsys):
    assert bench("--time-limit", "35") == 0
    assert runs.lengths == [40] * ROWS + [50]
    cut = _kept(tmp_path)
    assert [row["refused"] for row in cut.rows[-2:]] == [
        "not begun within the time limit of 35 s"
    ] * 2
    assert "; 2 rows are missing, run the same command again" in capsys.readouterr().out

    assert bench() == 0
    assert runs.lengths == [50] * ROWS  # those of a size are from one process
    whole = _kept(tmp_path)
    assert not not_begun(whole.rows)
    assert whole.rows[: 2 + ROWS] == cut.rows[: 2 + ROWS]
    assert all("first_token_speedup" in row for row in whole.rows if row["kind"] == "run")
    assert whole.provenance.seconds == 10.0 * (ROWS + 1 + ROWS)
    said = capsys.readouterr()
    assert "swaa bench generate: 3 of 6 rows are there already" in said.err
    assert "row 4 of 6: no attention, 50 tokens" in said.err
    assert "not begun" not in said.out

    assert bench() == 0
    assert runs.lengths == []
    assert "measured on" in capsys.readouterr().out


def test_nothing_measured_is_nothing_finished(tmp_path, runs, bench):
    assert bench("--time-limit", "1") == 0
    assert not_begun(_kept(tmp_path).rows) == 2 * ROWS - 1
    assert bench() == 0
    assert runs.lengths == [40] * ROWS + [50] * ROWS
    assert _kept(tmp_path).provenance.seconds == 20.0 * ROWS


def test_an_interrupted_run_keeps_its_rows(tmp_path, runs, bench):
    runs.interrupt_at = ROWS + 2
    assert bench() == 130
    cut = _kept(tmp_path)
    assert not_begun(cut.rows) == 1
    assert cut.rows[-1]["refused"] == "not begun"
    runs.interrupt_at = None
    assert bench() == 0
    assert runs.lengths == [50] * ROWS
    assert _kept(tmp_path).rows[: 2 + ROWS] == cut.rows[: 2 + ROWS]


def test_rows_of_another_commit_are_not_mixed_in(tmp_path, runs, bench, capsys, monkeypatch):
    assert bench("--time-limit", "35") == 0
    cut = _kept(tmp_path)
    monkeypatch.setattr(results, "_checkout", lambda: ("b" * 40, False))
    capsys.readouterr()
    assert bench() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"has commit {'a' * 40}, here it is {'b' * 40}: its rows cannot be mixed" in error
    assert runs.lengths == []
    assert _kept(tmp_path) == cut
    assert bench("--again") == 0
    assert runs.lengths == [40] * ROWS + [50] * ROWS


def test_a_finished_run_stays_until_another_is(tmp_path, runs, bench, capsys):
    assert bench() == 0
    finished = _kept(tmp_path)
    assert bench("--again", "--time-limit", "35") == 0
    assert "not saved: 2 rows were not measured" in capsys.readouterr().out
    assert _kept(tmp_path) == finished
    runs.interrupt_at = 1
    assert bench("--again") == 130
    assert _kept(tmp_path) == finished


def test_versions_are_compared_where_there_are_rows_to_keep():
    now = results.record_provenance(seconds=1.0)
    then = replace(now, commit="c" * 40)
    row = {"kind": "run", "setting": "fast", "tokens": 40, "batch": 1, "refused": None}
    cut = row | {"tokens": 50, "refused": "not begun"}

    def kept(*rows):
        head = {"kind": "ceiling"}
        result = results.Result(
            kind="generate", name="x", config={}, rows=(head, *rows), provenance=then
        )
        return rows_to_keep(result, now)

    assert kept(cut, cut | {"refused": None}) == []
    then = replace(now, dirty=not now.dirty)
    with pytest.raises(ValueError, match="has uncommitted changes "):
        kept(row, cut)
    then = replace(now, versions={**now.versions, "torch": "1.0"})
    with pytest.raises(ValueError, match=r"has torch 1\.0, here it is 2"):
        kept(row, cut)
