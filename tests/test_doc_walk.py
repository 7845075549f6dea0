"""Commands of the how-to pages as they stand, on a tiny model in the place of MODEL."""

import importlib.util
import json
import shlex

import pytest

from swaa import cli
from tests.checkpoint import save_checkpoint
from tests.documents import NAMES, commands

TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
TEXT = "It was decided to close the harbour. " * 6
ASKED = {"context": TEXT, "question": "Who signed?", "answers": ["Ada"]}
SAID = {
    "messages": [
        {"role": "user", "content": "Who signed?"},
        {"role": "assistant", "content": "Ada"},
    ]
}
# Left out: what takes a GPU, a server or hours; the parser reads those in test_doc_commands.py.
SHORT = (
    "generate MODEL --recipe",
    "eval MODEL --tasks jsonl:",
    "eval MODEL --recipes full,selected,fast --tasks jsonl:",
    "eval MODEL --paper-table",
    "train MODEL --recipe fast --data sft.jsonl --out",
    "report ",
)


def _shown():
    """In the documents' order, each once."""
    lines = [shlex.join(one[1:]) for page in NAMES for one in commands(page) if one[0] == "swaa"]
    return [line for line in dict.fromkeys(lines) if line.startswith(SHORT)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with everything that the commands name."""
    folder = tmp_path_factory.mktemp("walk")
    save_checkpoint(folder / "MODEL", chat_template=TEMPLATE)
    (folder / "report.txt").write_text(TEXT)
    for name, line in (("docs", ASKED), ("questions", ASKED), ("sft", SAID)):
        (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def test_the_walk_is_what_the_documents_show():
    shown = _shown()
    assert [start for start in SHORT if not any(line.startswith(start) for line in shown)] == []


@pytest.mark.parametrize("line", _shown())
def test_a_command_runs_as_it_stands(line, place, monkeypatch, capsys):
    if line.startswith("train") and importlib.util.find_spec("trl") is None:
        pytest.skip("needs trl: pip install 'swaa[train]'")
    monkeypatch.chdir(place)
    assert cli.main(shlex.split(line)) == 0, capsys.readouterr().err
