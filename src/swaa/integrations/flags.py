"""Flags of a serving engine's command line that ``swaa serve`` reads, too."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_flags(arguments: Sequence[str], *, interest: Sequence[str], engine: str) -> dict[str, Any]:
    """Each flag's value, as engines read it: ``--a-b c``, ``--a_b=c``, ``--a.x c``, or a file.

    Args:
        arguments: of the engine's ``serve``.
        interest: flags that have to be written in full.
        engine: its name, for messages.

    Raises:
        ValueError: for a ``--config`` file that cannot be read, and for a flag of interest that is
            cut short.
    """
    found: dict[str, Any] = {}
    for word, following in itertools.pairwise([*arguments, ""]):
        if not word.startswith("--"):
            continue
        name, is_joined, value = word[2:].partition("=")
        name = name.partition(".")[0].replace("_", "-")
        whole = next((flag for flag in interest if name and flag.startswith(name)), name)
        if whole != name and name not in interest:
            raise ValueError(f"--{name}: write the flag out: --{whole}")
        if is_joined and name == "config":
            raise ValueError(f"{word}: {engine} reads no file so; write --config {value}")
        found[name] = value if is_joined else following
    return {**_config_file(found["config"]), **found} if "config" in found else found


def _config_file(path: str) -> Mapping[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"--config {path} cannot be read: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} holds no flags; expected YAML such as 'port: 8001'")
    return {str(name).partition(".")[0].replace("_", "-"): value for name, value in values.items()}
