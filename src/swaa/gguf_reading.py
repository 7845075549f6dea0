"""Read a GGUF file once, and fast, while Transformers loads from it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def read_once(needed: bool = True) -> Iterator[None]:
    """Within the block each GGUF file is read once; afterwards ``gguf`` is as it was.

    Transformers reads a file anew for its configuration, its tokenizer and its weights, and lists
    the names of its tensors for each module. A reader cuts the file into some hundred thousand
    pieces, and each cut of a ``numpy.memmap`` takes several times as long as one of a plain array
    over the same memory. Does nothing where gguf is not installed.

    Args:
        needed: whether a GGUF file is read at all; else nothing is done.
    """
    if not needed or importlib.util.find_spec("gguf") is None:
        yield
        return
    import numpy as np

    gguf: Any = importlib.import_module("gguf")

    class Reader(gguf.GGUFReader):
        """Cuts a plain array."""

        @property
        def data(self) -> Any:
            """The bytes of the file, mapped into memory."""
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = np.asarray(mapped)

    with _ONE_AT_A_TIME:
        reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
        gguf.GGUFReader = functools.cache(Reader)
        gguf.get_tensor_name_map = functools.cache(names)
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = reader, names
