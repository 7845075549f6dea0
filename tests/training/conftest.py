"""A tiny chat model and conversations of several lengths, some of several turns."""

import json
from pathlib import Path

import pytest

from swaa.config import SWAAConfig

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIG = SWAAConfig(window=16, sink_tokens=2, full_layers=[1], full_decode=[0, 2], dense_tail=4)
"""Every kind of row: sliding, tail, answer in layers with full decode and in one without."""

# Transformers renamed an option in 5.23; TRL and PEFT still say the old name, as 5.17 wants it.
UPSTREAM = (
    "ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`torch.jit.script:DeprecationWarning",
)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for warning in UPSTREAM:
                item.add_marker(pytest.mark.filterwarnings(warning))


def write_lines(path, conversations):
    path.write_text("".join(json.dumps(line) + "\n" for line in conversations), encoding="utf-8")
    return path


def conversation(*turns):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def conversations(count=8):
    lines = [conversation("x" * (18 + 7 * i), "yes" * (1 + i % 3) + f" {i}") for i in range(count)]
    lines[-1] = conversation("a" * 30, "first", "and then? " * 3, "second one")
    return lines


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of the tiny model."""
    from tests.checkpoint import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("tiny"), chat_template=CHAT)


@pytest.fixture
def load(checkpoint):
    """Loads it, afresh each time, in float32 on the CPU."""
    from swaa.models import load_model

    return lambda: load_model(str(checkpoint), dtype="float32", device="cpu")


@pytest.fixture
def data(tmp_path):
    """A file of conversations."""
    return write_lines(tmp_path / "data.jsonl", conversations())
