"""Memory that runs out is explained; other errors stay what they are."""

import pytest
import torch

from swaa.memory import explain_out_of_memory


def _on_the_host():
    torch.empty(1 << 60, dtype=torch.uint8)


def _on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fail", [_on_the_host, _on_a_gpu])
def test_memory_that_runs_out_is_a_value_error(fail):
    message = "^out of memory with 9 tokens; shorten them$"
    with (
        pytest.raises(ValueError, match=message) as caught,
        explain_out_of_memory("9 tokens", "shorten them"),
    ):
        fail()
    assert caught.value.__suppress_context__


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="size of tensor"), explain_out_of_memory("x", "y"):
        torch.ones(2) + torch.ones(3)
