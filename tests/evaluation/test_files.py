import json
import sys

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from swaa.evaluation.tasks import find_tasks, rows
from swaa.evaluation.tasks.longbench_v2 import find_letter

OWN = {"context": "The code is 77. Mind it.", "question": "Which code?", "answers": ["77"]}
CHOICES = {f"choice_{letter}": f"choice {letter.lower()}" for letter in "ABCD"}
LONGBENCH = {"_id": "b1", "domain": "Law", "context": "Text.", "question": "Who?", "answer": "C"}
LONGBENCH |= CHOICES
MEMORY = {
    "question_id": "q1",
    "question_type": "temporal-reasoning",
    "question": "When did I go?",
    "question_date": "2023/05/30",
    "answer": 7,
    "haystack_dates": ["2023/05/01", "2023/05/02", "2023/05/03"],
    "haystack_session_ids": ["s1", "s2", "s3"],
    "answer_session_ids": ["s2"],
    "haystack_sessions": [
        [{"role": "user", "content": f"turn {index}"}, {"role": "assistant", "content": "ok"}]
        for index in range(3)
    ],
}


def _write(folder, name, rows):
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def _samples(prompt, spec, *, length=None, count=None, seed=0):
    (task,) = find_tasks([spec])
    return task, task.samples(prompt, length=length, count=count, seed=seed)


def test_own_questions(prompt, tmp_path):
    more = {"match": "any", "answers": ["x", "y"], "answer_prefix": "It is", "max_new_tokens": 3}
    path = _write(tmp_path, "my.jsonl", [OWN, OWN | more | {"needle": "The code is 77."}])
    task, (first, second) = _samples(prompt, f"jsonl:{path}")
    assert (task.name, first.id, second.id) == ("jsonl:my.jsonl", "my.jsonl:1", "my.jsonl:2")
    assert first.length == prompt.count(first.context, first.question)
    assert first.needles == ()
    assert second.needles[0].tokens == len("The code is 77.")
    assert (second.answer_prefix, second.max_new_tokens) == ("It is", 3)
    assert task.score(first, "It is 77").value == 1
    assert task.score(second, "X marks it").value == 1
    assert task.score(second, "neither").value == 0
    assert task.score(first, "It is 177, or 77.5").value == 0
    assert task.describe()["version"] == 2  # the first scorer found 77 in both
    assert not task.score(first, None).answered
    assert task.describe()["data"] == "my.jsonl"
    revision = task.describe()["data_revision"]
    _write(tmp_path, "my.jsonl", [OWN])
    assert task.describe()["data_revision"] != revision


def test_prompts_that_are_too_long_are_left_out(prompt, tmp_path):
    rows = [OWN, OWN | {"context": "long " * 500}, OWN]
    path = _write(tmp_path, "my.jsonl", rows)
    _, samples = _samples(prompt, f"jsonl:{path}", length=200)
    assert [sample.id for sample in samples] == ["my.jsonl:1", "my.jsonl:3"]
    _, samples = _samples(prompt, f"jsonl:{path}", count=2)
    assert [sample.id for sample in samples] == ["my.jsonl:1", "my.jsonl:2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"my.jsonl, line 2 is not JSON: .*; correct it or take it out"),
        ("[1]", r"my.jsonl, line 2: expected a JSON object with named columns, got \[1\]"),
        ('{"context": "a", "answers": ["b"]}', r"line 2: there is no column 'question'; the col"),
        ('{"context": "a", "question": "b"}', r"line 2: 'answers' must be a text or a list of te"),
        (json.dumps(OWN | {"answers": [" "]}), r"line 2: 'answers' holds an empty text"),
        (json.dumps(OWN | {"context": ["a"]}), r"line 2: column 'context' is a list; expected te"),
        (json.dumps(OWN | {"match": "most"}), r"line 2: 'match' is 'most'; expected 'all' or"),
        (json.dumps(OWN | {"max_new_tokens": 0}), r"line 2: 'max_new_tokens' is 0; expected"),
        (json.dumps(OWN | {"needle": "nowhere"}), r"line 2: 'needle' must be words that 'context"),
    ],
)
def test_a_bad_line_is_named(prompt, tmp_path, line, message):
    path = tmp_path / "my.jsonl"
    path.write_text(f"{json.dumps(OWN)}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        _samples(prompt, f"jsonl:{path}")


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("longbench_v2", {"answer": "E"}, "'answer' is 'E'; expected one of A, B, C, D"),
        ("longbench_v2", {"choice_B": None}, "there is no column 'choice_B'"),
        ("longmemeval:2", {"haystack_sessions": "a"}, "'haystack_sessions' must be a list of list"),
        ("longmemeval:2", {"haystack_dates": ["a"]}, "3 sessions and 1 dates; expected as many"),
        ("longmemeval:2", {"haystack_sessions": [[1], [], []]}, "each turn of a session must have"),
        ("longmemeval:2", {"haystack_session_ids": None}, "'haystack_session_ids' must name every"),
    ],
)
def test_a_bad_row_is_named(prompt, tmp_path, task, row, message):
    good = LONGBENCH if task == "longbench_v2" else MEMORY
    path = _write(tmp_path, "rows.json", [good | row])
    with pytest.raises(ValueError, match=f"rows.json, row 1: {message}"):
        _samples(prompt, f"{task}:{path}")


def test_two_rows_of_one_id(prompt, tmp_path):
    path = _write(tmp_path, "b.jsonl", [LONGBENCH, LONGBENCH])
    with pytest.raises(ValueError, match=r"b.jsonl, line 2: a row before it has the same id, 'b1'"):
        _samples(prompt, f"longbench_v2:{path}")


def test_files_that_cannot_be_read(prompt, tmp_path):
    with pytest.raises(ValueError, match=r"jsonl reads a file; name it: jsonl:FILE\.jsonl"):
        find_tasks(["jsonl"])
    with pytest.raises(ValueError, match="expected a file that ends in"):
        find_tasks(["jsonl:my.csv"])
    with pytest.raises(FileNotFoundError, match=r"no such file: nothing\.jsonl"):
        find_tasks(["jsonl:nothing.jsonl"])
    path = _write(tmp_path, "my.json", {"a": 1})
    with pytest.raises(ValueError, match=r"my\.json: expected a list of rows, got a dict"):
        _samples(prompt, f"jsonl:{path}")
    (tmp_path / "my.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"my\.json, the file is not JSON"):
        _samples(prompt, f"jsonl:{path}")


def test_parquet_without_its_package_names_the_remedy(prompt, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ImportError, match="needs pyarrow; run: pip install pyarrow"):
        _samples(prompt, f"longmemeval:{path}")


def test_parquet(prompt, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet files need pyarrow")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([LONGBENCH]), path)
    _, (sample,) = _samples(prompt, f"longbench_v2:{path}")
    assert sample.id == "b1"


@pytest.mark.parametrize("name", ["b.json", "b.jsonl"])
def test_longbench_v2(prompt, tmp_path, name):
    path = _write(tmp_path, name, [LONGBENCH, LONGBENCH | {"_id": "b2"}])
    task, (sample, _) = _samples(prompt, f"longbench_v2:{path}")
    assert "(D) choice d" in sample.question
    assert 'The correct answer is (X)"' in sample.question
    assert sample.tags == {"domain": "Law"}
    assert sample.max_new_tokens == 2_000
    assert task.score(sample, "So: **The correct answer is (C)**.") == (1.0, True, "C")
    assert task.score(sample, "The correct answer is (A)") == (0.0, True, "A")
    assert task.score(sample, "C") == (0.0, False, None)
    assert task.score(sample, None).answered is False


def test_longbench_v2_in_the_columns_of_the_papers_code(prompt, tmp_path):
    path = _write(tmp_path, "b.json", [{"prompt": "All of it.", "answer": "A"}])
    _, (sample,) = _samples(prompt, f"longbench_v2:{path}")
    assert sample.context == "All of it."
    assert "The correct answer is" in sample.question


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The correct answer is (B). No: The correct answer is (D).", "D"),
        ("the correct answer is C", "C"),
        ("The correct answer is: B.", "B"),
        ("The correct answer is Because", None),
        ("The correct answer is (E)", None),
        ("", None),
    ],
)
def test_letters(answer, letter):
    assert find_letter(answer) == letter


def test_longmemeval(prompt, tmp_path):
    path = _write(tmp_path, "m.json", [MEMORY])
    task, (sample,) = _samples(prompt, f"longmemeval:{path}")
    assert task.needs_judge
    assert sample.id == "q1"
    assert sample.answers == ("7",)
    assert "Today is 2023/05/30." in sample.question
    assert sample.tags == {"asked": "When did I go?", "type": "temporal-reasoning"}
    assert "Conversation of 2023/05/02\nuser: turn 1\nassistant: ok" in sample.context
    score = task.score(sample, "On the 7th.")
    assert (score.value, score.answered, score.extracted) == (None, True, "On the 7th.")
    assert task.score(sample, None) == (0.0, False, None)


def test_longmemeval_of_fewer_sessions_keeps_those_with_the_answer(prompt, tmp_path):
    path = _write(tmp_path, "m.json", [MEMORY])
    kept = set()
    for seed in range(8):
        task, (sample,) = _samples(prompt, f"longmemeval:2:{path}", seed=seed)
        assert "turn 1" in sample.context
        assert sample.context.count("Conversation of") == 2
        kept.add("turn 0" in sample.context)
    assert kept == {True, False}
    assert task.name == "longmemeval:2:m.json"
    with pytest.raises(ValueError, match="expected at least 1 session"):
        find_tasks([f"longmemeval:0:{path}"])


@pytest.mark.parametrize("column", ["prompt", "context"])
def test_longmemeval_in_the_columns_of_the_papers_code(prompt, tmp_path, column):
    row = {column: "Long ago.", "question": "When?", "answer": "May"}
    path = _write(tmp_path, "m.jsonl", [row])
    _, (sample,) = _samples(prompt, f"longmemeval:{path}")
    assert "Long ago." in sample.context
    assert sample.tags["asked"] == "When?"
    assert ("When?" in sample.question) == (column == "context")


def test_files_of_the_hub_are_read_like_local_ones(prompt, tmp_path, monkeypatch):
    path = tmp_path / "data.jsonl"
    path.write_text('{"context": "a", "question": "b", "answers": ["c"]}\n')
    asked = []

    def download(name, file, repo_type):
        asked.append((name, file, repo_type))
        return str(path)

    monkeypatch.setattr(rows, "hf_hub_download", download)
    task, (sample,) = _samples(prompt, "jsonl:hf://owner/set/folder/data.jsonl")
    assert asked == [("owner/set", "folder/data.jsonl", "dataset")]
    assert sample.answers == ("c",)
    assert task.name == "jsonl:data.jsonl"


def test_files_that_the_hub_does_not_give_are_named(monkeypatch):
    def fail(*args, **options):
        raise LocalEntryNotFoundError("no network\nand no copy")

    monkeypatch.setattr(rows, "hf_hub_download", fail)
    with pytest.raises(FileNotFoundError, match=r"cannot have hf://o/s/x.json: no network and no"):
        find_tasks(["longbench_v2:hf://o/s/x.json"])
    with pytest.raises(ValueError, match=r"hf://o/x.json: expected hf://OWNER/DATASET/FILE"):
        find_tasks(["longmemeval:10:hf://o/x.json"])
