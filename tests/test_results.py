import dataclasses
import errno
import json
import os
import platform
import stat

import pytest

from swaa import results

CONFIG = {"setting": {"window": 512}, "model": "tiny", "lengths": (128, 256)}


def _result(**changes):
    values = {
        "kind": "demo",
        "name": "tiny",
        "config": CONFIG,
        "rows": ({"setting": "full", "answered": 0.5},),
        "provenance": results.record_provenance(model="tiny", dtype="float32", seed=0, seconds=1.5),
    }
    return results.Result(**(values | changes))


def test_saved_result_is_found_and_equal(tmp_path):
    result = _result()
    assert results.find("demo", "tiny", CONFIG, folder=tmp_path) is None
    path = results.save(result, folder=tmp_path, samples=[{"answer": "7"}, {"answer": "8"}])
    assert results.find("demo", "tiny", CONFIG, folder=tmp_path) == result
    assert results.read_samples(path) == [{"answer": "7"}, {"answer": "8"}]
    content = json.loads(path.read_text())
    assert list(content) == ["schema", "kind", "name", "provenance", "config", "rows"]


def test_file_name_depends_on_the_run_not_on_time_or_key_order(tmp_path):
    later = dataclasses.replace(_result().provenance, created="2030-01-01T00:00:00+00:00")
    first = results.save(_result(), folder=tmp_path)
    second = results.save(_result(provenance=later, rows=()), folder=tmp_path)
    assert first == second
    assert first.name.startswith("tiny-")
    assert len(first.stem) == len("tiny-") + 8
    turned = dict(reversed(CONFIG.items()))
    assert results.result_path("demo", "tiny", turned, folder=tmp_path) == first
    other = CONFIG | {"model": "other"}
    assert results.result_path("demo", "tiny", other, folder=tmp_path) != first


def test_provenance_names_versions_and_chip_but_no_machine():
    provenance = results.record_provenance(packages=("no-such-package",))
    assert provenance.versions["python"] == platform.python_version()
    assert provenance.versions["torch"]
    assert provenance.versions["no-such-package"] is None
    assert provenance.device.endswith("cores")
    assert provenance.created.endswith("+00:00")
    text = json.dumps(dataclasses.asdict(provenance))
    assert os.getcwd() not in text
    assert platform.node() not in text


def test_provenance_outside_a_checkout_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "__file__", str(tmp_path / "a" / "b" / "results.py"))
    provenance = results.record_provenance()
    assert (provenance.commit, provenance.dirty) == (None, None)


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = results.save(_result(), folder=tmp_path)
    before = path.read_text()

    def fail(_descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        results.save(_result(rows=()), folder=tmp_path)
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_names_the_file_and_the_remedy(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        OSError, match=r"cannot write .*\.json.*make room, or write elsewhere"
    ) as error:
        results.save(_result(), folder=tmp_path)
    assert error.value.errno == errno.ENOSPC


def test_samples_that_are_there_stay_but_for_a_torn_line(tmp_path):
    path = results.result_path("demo", "tiny", CONFIG, folder=tmp_path)
    assert results.read_samples(path) == []
    path.parent.mkdir()
    path.with_suffix(".jsonl").write_text('{"index": 0}\n{"index": 1\n{"index": 2}\n')
    assert results.read_samples(path) == [{"index": 0}, {"index": 2}]
    results.save(_result(), folder=tmp_path)
    assert results.read_samples(path) == [{"index": 0}, {"index": 2}]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": "Two Words"}, ValueError, "name is 'Two Words'; use lower-case"),
        ({"kind": "../up"}, ValueError, "kind is '../up'"),
        ({"config": {"model": "/models/tiny"}}, ValueError, r"config\.model holds the path"),
        ({"config": {"models": ["C:\\tiny"]}}, ValueError, "results hold names, not paths"),
        ({"config": {"model": "Bearer abcdefgh12345678"}}, ValueError, "looks like a secret"),
        ({"config": {"dtype": object()}}, TypeError, "config must hold JSON values only"),
        ({"rows": ({"loss": float("nan")},)}, ValueError, "rows holds NaN or infinity"),
    ],
)
def test_unusable_content_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        _result(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: "{", "is not JSON"),
        (lambda content: json.dumps([content]), "is not a result file; expected the keys"),
        (lambda content: json.dumps(content | {"schema": 2}), "schema 2; this swaa reads 1"),
        (lambda content: json.dumps(content | {"provenance": {}}), "is not a result file: "),
        (lambda content: json.dumps(content | {"name": "other"}), "was renamed or edited"),
    ],
)
def test_unreadable_file_is_named(tmp_path, change, message):
    path = results.save(_result(), folder=tmp_path)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message) as caught:
        results.load(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_says_who_may_read_results(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        results.write_whole(tmp_path / "samples.jsonl", "private\n")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "samples.jsonl").stat().st_mode) == mode
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]
