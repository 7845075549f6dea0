"""Which weights, which data: a commit or a checksum, so that results of others are not mixed in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from swaa.models import LoadedModel, find_model

_PART = 1 << 20
_WHOLE = 256 << 20
_SUFFIXES = {".json", ".safetensors", ".bin", ".gguf", ".model"}


def model_revision(name: str, loaded: LoadedModel) -> str | None:
    """The hub's commit, the version of a package, or a checksum of the files that were read.

    Args:
        name: what was loaded, as typed.
        loaded: what came of it.
    """
    if loaded.revision is not None:
        return loaded.revision
    source = find_model(name)
    folder = Path(source.location)
    if not folder.is_dir():
        return None
    if source.gguf_file is not None:
        return checksum([folder / source.gguf_file])
    return checksum(sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES))


def checksum(paths: Iterable[Path]) -> str:
    """Twelve hexadecimal digits for files: their names, sizes and content.

    Of files beyond 256 MiB, the first and the last megabyte stand for the content: reading all of
    a large model would take longer than loading it.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size > _WHOLE:
                digest.update(file.read(_PART))
                file.seek(-_PART, 2)
            while part := file.read(_PART):
                digest.update(part)
    return f"sha256-{digest.hexdigest()[:12]}"
