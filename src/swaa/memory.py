"""Memory that runs out, as a message that says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CPU = "DefaultCPUAllocator"
"""Part of the CPU allocator's error message: that error has no class of its own."""


@contextmanager
def explain_out_of_memory(work: str, advice: str) -> Iterator[None]:
    """Run work that may not fit into the memory of its device.

    Args:
        work: what may not fit, with its sizes.
        advice: what to lower.

    Raises:
        ValueError: when the memory, of a GPU or of the host, is not enough.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and _CPU not in str(error):
            raise
        raise ValueError(f"out of memory with {work}; {advice}") from None
