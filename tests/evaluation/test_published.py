"""The published comparison: what is made of results, and that the document shows them."""

import dataclasses
import re

import pytest

from swaa.config import SWAAConfig
from swaa.documents import replace_between
from swaa.evaluation import published
from swaa.evaluation.run import gather
from swaa.evaluation.tasks.multikey import MultiKey
from tests.documents import ROOT
from tests.evaluation.fakes import executed, make_run

DOCUMENT = ROOT / "docs/measurements/accuracy.md"
SETTINGS = {
    "naive": SWAAConfig(window=1024),
    "fast": SWAAConfig(window=1024, sink_tokens=128, full_decode=True, dense_tail=128),
    "full": SWAAConfig(window=None),
}


@pytest.fixture
def folder(prompt, tmp_path):
    """Results of 20 samples: full has all right, fast 19, naive 5; multikey lacks naive."""
    made = []
    for task in (None, MultiKey()):
        for name, count in (("naive", 5), ("fast", 19), ("full", 20)):
            if task is None or name != "naive":
                asked = {"setting": name, "config": SETTINGS[name], "model": published.MODEL}
                run = make_run(prompt, count=20, task=task, **asked)
                made.append(executed(run, count, tmp_path))
    gather(made, folder=tmp_path)
    return tmp_path


def _cells(table, name):
    return [
        [cell.strip() for cell in line.split("|")[2:-1]]
        for line in table.splitlines()
        if line.startswith(f"| `{name}` ")
    ]


def test_the_table_says_what_the_results_hold(folder):
    columns = published.read_columns(folder)
    assert [column.title for column in columns] == ["needle 1,500", "multikey 1,500"]
    table = published.markdown(columns)
    assert list(published.settings(columns)) == ["full", "fast", "naive"]
    assert _cells(table, "full")[0] == ["100", "100", "100 (84 to 100)", "100 (84 to 100)"]
    assert _cells(table, "naive")[0][2:] == ["25\\* (11 to 47)", ""]
    prefill, memory, *cells = _cells(table, "fast")[0]
    assert cells == ["95 (76 to 99)", "95 (76 to 99)"]
    assert 90 < int(prefill) < 100
    assert memory == "100"
    near, far = _cells(table, "full")[1][0].split("; ")
    assert int(near.split()[-1]) + int(far.split()[-1]) == 20
    assert table.count("20 prompts, seed 0") == 2
    for line in table.splitlines():
        if line.startswith("- ["):
            assert (folder / "eval" / line.partition("eval/")[2].partition(")")[0]).is_file()


def test_tracking_ranks_no_setting(folder):
    needle = published.read_columns(folder)[0]
    swapped = {**needle.runs, "fast": needle.runs["naive"], "naive": needle.runs["fast"]}
    tracking = dataclasses.replace(needle, task="variable_tracking", runs=swapped)
    order = ["full", "fast", "naive"]
    assert list(published.settings([needle, tracking, tracking])) == order
    assert list(published.settings([needle])) == order


def test_table_and_picture_are_put_into_a_document(folder, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'swaa[plot]'")
    document = tmp_path / "page.md"
    document.write_text(f"before\n\n{published.BEGIN}\nold\n<!-- end -->\n\nafter\n")
    published.main(str(folder), str(document))
    columns = published.read_columns(folder)
    text = document.read_text()
    assert published.markdown(columns) in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert published.fingerprint(columns).encode() in document.with_suffix(".png").read_bytes()
    published.main(str(folder), str(document))
    assert document.read_text() == text


def test_mistakes_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="holds no gathered results of SmolLM2"):
        published.read_columns(tmp_path / "nothing")
    with pytest.raises(ValueError, match="the document does not contain the marks"):
        replace_between("text", published.BEGIN, "table")


def test_full_attention_must_be_there(prompt, tmp_path):
    run = make_run(prompt, setting="naive", config=SETTINGS["naive"], model=published.MODEL)
    gather([executed(run, 1, tmp_path)], folder=tmp_path)
    with pytest.raises(ValueError, match="has no full attention to compare with"):
        published.read_columns(tmp_path)


def test_the_document_shows_the_committed_results():
    table = published.markdown(published.read_columns(ROOT / "results"))
    document = DOCUMENT.read_text("utf-8")
    assert replace_between(document, published.BEGIN, table) == document


def test_the_picture_shows_the_committed_results():
    mark = published.fingerprint(published.read_columns(ROOT / "results"))
    assert mark.encode() in DOCUMENT.with_suffix(".png").read_bytes()


def test_links_of_the_document_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)", DOCUMENT.read_text("utf-8"))
    assert len(links) > 3
    assert [link for link in links if not (DOCUMENT.parent / link).exists()] == []


def test_published_results_are_of_clean_commits():
    for column in published.read_columns(ROOT / "results"):
        assert column.result.provenance.dirty is False
        assert column.result.provenance.commit
        assert {row["samples"] for row in column.result.rows if row["place"] == "all"} == {100}
