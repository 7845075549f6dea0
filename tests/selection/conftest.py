import json
from contextlib import ExitStack

import pytest
import torch

from swaa.evaluation.prompt import Prompt
from swaa.files import SamplesFile
from swaa.models import LoadedModel
from swaa.results import load
from swaa.selection.batches import TeacherForced
from swaa.selection.board import Board
from swaa.selection.passes import SharedPasses
from tests.checkpoint import tiny_llama
from tests.evaluation.conftest import byte_tokenizer

DEPTH = 4
WORDS = ["river", "stone", "lamp", "quiet", "orange", "paper", "winter", "glass", "seven"]


@pytest.fixture(scope="session")
def loaded():
    """A random model of four layers that reads bytes, sharp enough for layers to matter."""
    tokenizer = byte_tokenizer()
    sizes = {"num_hidden_layers": DEPTH, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_llama(tokenizer, initializer_range=0.3, **sizes)
    return LoadedModel(model=model, tokenizer=tokenizer, name="tiny", revision="test")


@pytest.fixture
def prompt(loaded):
    return Prompt(tokenizer=loaded.tokenizer)


@pytest.fixture
def data(tmp_path):
    """A file of nine prompts, the longer the later."""
    texts = [" ".join(WORDS[(i * k + k // 3) % 9] for k in range(14 + i)) for i in range(9)]
    return write_lines(
        tmp_path / "my.jsonl", [{"prompt": text, "max_new_tokens": 2} for text in texts]
    )


def write_lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def words(checkpoint, data, tmp_path):
    """Words of `swaa tune` on that file; the results lie in the test's folder."""

    def words(*more, model=checkpoint):
        return [
            *("tune", str(model), "--data", str(data)),
            *("--samples", "4", "--keep", "0.01", "--batch-size", "4", "--recipe", "fast"),
            *("--window", "70", "--sink-tokens", "2", "--dense-tail", "4"),
            *("--results", str(tmp_path / "results"), "--out", str(tmp_path / "tuned.json")),
            *more,
        ]

    return words


@pytest.fixture
def kept_rows(tmp_path):
    """The rows of the result of a tuning."""

    def rows():
        (file,) = (tmp_path / "results" / "tune").glob("*-tune-*.json")
        return load(file).rows

    return rows


def teacher_forced(*lengths, answers=(5, 3, 7)):
    chance = torch.Generator().manual_seed(1)
    ids = [torch.randint(5, 250, (n,), generator=chance).tolist() for n in lengths]
    return [
        TeacherForced(f"s{i}", tuple(row[: -answers[i % 3]]), tuple(row[-answers[i % 3] :]))
        for i, row in enumerate(ids)
    ]


@pytest.fixture
def make_board(loaded, tmp_path):
    """A board on samples, its file in a folder of the test."""
    counted = []
    with ExitStack() as stack:

        def make(samples, *, name="scores", tail=12, **options):
            counted.append(name)
            name = f"{name}-{len(counted)}" if name == "scores" else name
            passes = SharedPasses(loaded, samples, batch_size=4, tail=tail)
            file = SamplesFile(tmp_path / f"{name}.jsonl")
            if len(counted) == 1:  # the model is adapted once; plans are set before each pass
                stack.enter_context(passes)
            return Board(passes, stack.enter_context(file), **options)

        yield make
