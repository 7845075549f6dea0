"""Two shortcuts: a model loaded and adapted in one call, and an adaptation for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swaa.adaptation import Adaptation, adapt, adaptation_of, bring_back, carried_by
from swaa.config import SWAAConfig
from swaa.models import load_model
from swaa.recipes import DEFAULT, load_recipe, resolve


class Loaded(NamedTuple):
    """What :func:`load` returns; unpacks as ``model, tokenizer``.

    Attributes:
        model: adapted, in evaluation mode, on its device.
        tokenizer: its tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(
    name: str,
    recipe: SWAAConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    backend: str = "auto",
    warm_up: bool = False,
    quiet: bool = False,
) -> Loaded:
    """Load a model and its tokenizer, and adapt the model.

    >>> model, tokenizer = swaa.load("smollm2", "balanced")  # doctest: +SKIP
    adapted 30 of 30 layers: window 2048, ...

    Args:
        name: a folder, a hub name, a GGUF file, or ``smollm2``.
        recipe: a recipe's name, a configuration, the path of a JSON file, or a dictionary.
            Default: what the checkpoint carries, else ``selected``.
        dtype: as :func:`swaa.models.load_model` takes it, like the next three.
        device: ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``auto``.
        device_map: spread the layers over devices (accelerate).
        trust_remote_code: run Python code that comes with the checkpoint.
        backend: as :func:`swaa.adapt` takes it, like the next two.
        warm_up: compile the kernels now.
        quiet: do not print what is active.

    Returns:
        Model and tokenizer.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ImportError: when a package is missing; the message holds its ``pip install`` line.
        ValueError: for an unknown recipe; for a model that cannot be read or adapted.
    """
    # Resolve first: a mistake in the recipe shows before the weights are loaded for minutes.
    config = None if recipe is None else resolve(recipe)
    loaded = load_model(
        name,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    if config is None and carried_by(loaded.model) is None:
        config = load_recipe(DEFAULT)
    adapt(loaded.model, config, backend=backend, warm_up=warm_up, quiet=quiet)
    return Loaded(loaded.model, loaded.tokenizer)


@contextmanager
def adapted(
    model: PreTrainedModel,
    recipe: SWAAConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    backend: str = "auto",
    warm_up: bool = False,
    trial: bool = True,
    quiet: bool = False,
) -> Iterator[Adaptation]:
    """Adapt a model for the block; afterwards, even after an error, it is as it was before.

    A model that was adapted before gets its earlier adaptation back; one that was not is restored.
    Blocks may be nested.

    >>> with swaa.adapted(model, "fast"):  # doctest: +SKIP
    ...     output = model.generate(**inputs)

    Args:
        model: a causal language model.
        recipe: as :func:`swaa.adapt` takes it, like the options.
        backend: attention backend.
        warm_up: compile the kernels now.
        trial: first run two short prompts through the adapted model.
        quiet: do not print what is active.

    Yields:
        What is active inside the block.

    Raises:
        TypeError: when ``model`` is not a Transformers model.
        ValueError: as :func:`swaa.adapt` does.
    """
    earlier = adaptation_of(model)
    try:
        yield adapt(model, recipe, backend=backend, warm_up=warm_up, trial=trial, quiet=quiet)
    finally:
        bring_back(model, earlier)
