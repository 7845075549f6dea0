"""Without a GPU the Triton kernels run in Triton's interpreter, on the CPU."""

import importlib.util
import os

import pytest
import torch

from tests.interpreter import hasten

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

    try:
        from triton.runtime import interpreter
    except ImportError:
        interpreter = None

    if interpreter is not None:
        patch_lang_tensor = interpreter._patch_lang_tensor

        def patch_for_numpy_2_4(tensor, scope):
            # Triton 3.6 keeps scalars as arrays of one element; NumPy 2.4 no longer takes these
            # for ints, so loops with computed bounds would fail.
            patch_lang_tensor(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

        interpreter._patch_lang_tensor = patch_for_numpy_2_4
        hasten(interpreter)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    """Let ``backend="triton"`` serve CPU tensors, which ``auto`` must not find by itself."""
    if importlib.util.find_spec("triton") is not None:
        monkeypatch.setattr("swaa.attention.triton.serves_cpu", True)
