"""Without a GPU the Triton kernels run in Triton's interpreter, on the CPU."""

import importlib.util

import pytest


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    """Let ``backend="triton"`` serve CPU tensors, which ``auto`` must not find by itself."""
    if importlib.util.find_spec("triton") is not None:
        monkeypatch.setattr("swaa.attention.triton.serves_cpu", True)
