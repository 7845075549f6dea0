import dataclasses
import json

import pytest

from swaa import results
from swaa.config import SWAAConfig
from swaa.evaluation import gathered
from swaa.evaluation.run import execute, find, gather
from swaa.evaluation.tasks.multikey import MultiKey
from tests.evaluation.fakes import fake_engine, make_run, make_samples

SETTINGS = {
    "full": SWAAConfig(window=None),
    "fast": SWAAConfig(window=512, sink_tokens=100, full_decode=True),
    "my/naive.json": SWAAConfig(window=512),
}


def _runs(prompt, *settings, **changes):
    return [
        make_run(prompt, setting=name, config=SETTINGS[name], count=4, **changes)
        for name in settings or SETTINGS
    ]


def _outcomes(runs, folder):
    return [
        execute(run, make_samples(run), fake_engine(make_samples(run)), folder=folder)
        for run in runs
    ]


def _files(folder):
    return sorted(path.name for path in (folder / "eval").iterdir())


def test_a_gathered_run_is_found_as_it_was(prompt, tmp_path):
    runs = _runs(prompt) + _runs(prompt, task=MultiKey())
    before = _outcomes(runs, tmp_path)
    paths = gather(before, folder=tmp_path)
    assert _files(tmp_path) == sorted(
        p.with_suffix(s).name for p in paths for s in (".json", ".jsonl")
    )
    assert [path.name[:-14] for path in paths] == ["tiny-needle-1500", "tiny-multikey-1500"]
    for run, old in zip(runs, before, strict=True):
        new = find(run, folder=tmp_path)
        assert (new.result.config, new.result.rows) == (old.result.config, old.result.rows)
        assert new.samples == old.samples
        assert new.path in paths
    assert find(make_run(prompt, setting="fast", count=4), folder=tmp_path) is not None
    assert find(make_run(prompt, setting="other", count=4), folder=tmp_path) is None
    assert find(make_run(prompt, setting="fast", count=5), folder=tmp_path) is None


def test_a_gathered_file_is_a_result_with_one_line_a_prompt(prompt, tmp_path):
    outcomes = _outcomes(_runs(prompt), tmp_path)
    (path,) = gather(outcomes, folder=tmp_path)
    result = results.load(path)
    assert list(result.config["settings"]) == ["full", "fast", "naive"]
    assert {row["setting"] for row in result.rows} == {"full", "fast", "naive"}
    took = sum(outcome.result.provenance.seconds for outcome in outcomes)
    assert result.provenance.seconds == pytest.approx(took)
    lines = results.read_samples(path)
    assert len(lines) == 4
    assert set(lines[0]["replies"]) == {"full", "fast", "naive"}
    assert "needles" not in lines[0]["replies"]["fast"]


def test_later_runs_join_the_file(prompt, tmp_path):
    first = _outcomes(_runs(prompt, "full", "fast"), tmp_path)
    (old,) = gather(first, folder=tmp_path)
    late = _outcomes(_runs(prompt, "my/naive.json"), tmp_path)
    again = [find(outcome.run, folder=tmp_path) for outcome in first]
    (new,) = gather([*again, *late], folder=tmp_path)
    assert new != old
    assert _files(tmp_path) == [new.name, new.with_suffix(".jsonl").name]
    assert all(find(run, folder=tmp_path) for run in _runs(prompt))
    assert gather([find(run, folder=tmp_path) for run in _runs(prompt)], folder=tmp_path) == []


def test_runs_of_another_commit_lie_apart(prompt, tmp_path):
    ours, theirs = _outcomes(_runs(prompt, "full", "fast"), tmp_path)
    other = dataclasses.replace(theirs.result.provenance, commit="0" * 40)
    result = dataclasses.replace(theirs.result, provenance=other)
    results.save(result, folder=tmp_path)
    paths = gather([ours, dataclasses.replace(theirs, result=result)], folder=tmp_path)
    commits = [results.load(path).provenance.commit for path in paths]
    assert commits == [ours.result.provenance.commit, "0" * 40]


def test_settings_of_one_name_are_refused(prompt, tmp_path):
    runs = [
        make_run(prompt, setting=f"{folder}/x.json", config=SWAAConfig(window=window), count=2)
        for folder, window in (("a", 64), ("b", 128))
    ]
    outcomes = _outcomes(runs, tmp_path)
    before = _files(tmp_path)
    with pytest.raises(ValueError, match="two settings are called 'x'; rename one of their files"):
        gather(outcomes, folder=tmp_path)
    assert _files(tmp_path) == before


def test_lost_samples_are_missed(prompt, tmp_path):
    runs = _runs(prompt)
    (path,) = gather(_outcomes(runs, tmp_path), folder=tmp_path)
    beside = path.with_suffix(".jsonl")
    lines = [json.loads(line) for line in beside.read_text().splitlines()]
    del lines[1]["replies"]["full"]
    beside.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"jsonl has no samples of full; restore the file"):
        find(runs[0], folder=tmp_path)


def test_one_settings_result_is_not_read_as_gathered(prompt, tmp_path):
    (outcome,) = _outcomes(_runs(prompt, "full"), tmp_path)
    with pytest.raises(ValueError, match="is the result of one setting; expected gathered ones"):
        gathered.read(outcome.path)
