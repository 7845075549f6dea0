"""An adapter that is off where it is not needed: a prompt that fits the window.

Up to ``window + sink_tokens`` tokens the sliding mask is the full one, so the weights before
training are exactly right for such a prompt, and the adapter could only do harm.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swaa.config import SWAAConfig
from swaa.extras import install_line
from swaa.phase import current_phase

ADAPTER_KEY = "swaa_adapter"
"""Key of the adapter's config.json."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What an adapter folder says beside its weights.

    Attributes:
        base: the model it was trained on, as was typed.
        off_within: prompts of at most so many tokens are answered without it; ``None``: it is
            always on.
    """

    base: str
    off_within: int | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def fits(config: SWAAConfig) -> int | None:
    """Prompt tokens up to which the mask is the full one; ``None``: the model never slides."""
    return None if config.window is None else config.window + config.sink_tokens


def read_adapter(name: str) -> AdapterSettings | None:
    """What the adapter in a folder says; ``None``: there is none of ours."""
    path = Path(name).expanduser() / "config.json"
    if not path.is_file() or not (path.parent / "adapter_config.json").is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8")).get(ADAPTER_KEY)
    return AdapterSettings(**values) if isinstance(values, Mapping) else None


def put_adapter_on(model: PreTrainedModel, folder: str | Path) -> None:
    """Load an adapter onto its base model, unmerged, with its recipe and its switch.

    ``swaa.adapt(model)`` then needs no argument.

    Args:
        model: the base.
        folder: of the adapter.

    Raises:
        ValueError: for a folder without an adapter that ``swaa train`` wrote.
        ImportError: when peft is not installed.
    """
    settings = read_adapter(str(folder))
    if settings is None:
        raise ValueError(f"{folder} holds no adapter of swaa train")
    if importlib.util.find_spec("peft") is None:
        raise ImportError(f"{folder} is an adapter and needs peft; run: {install_line('train')}")
    folder = Path(folder).expanduser()
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model.load_adapter(str(folder))
    vars(model.config)["swaa"] = values["swaa"]
    if settings.off_within is not None:
        switch_by_length(model, settings.off_within)


def switch_by_length(model: PreTrainedModel, off_within: int) -> Any:
    """Turn the adapter off in forward passes whose declared prompt is short enough, else on.

    The longest prompt of a batch decides. Where no prompt length is declared the adapter is on.

    Args:
        model: with an adapter; ``generate`` of an adapted model declares the prompt's length.
        off_within: longest prompt without the adapter (tokens; padding counts only where decoding
            runs from a graph, which cannot wait for a mask to be read).

    Returns:
        A handle whose ``remove()`` ends it.
    """
    any_model: Any = model
    on = True

    def switch(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal on
        if torch.compiler.is_compiling():
            return  # the eager pass over the prompt has decided
        longest = _longest_prompt(kwargs.get("attention_mask"))
        wanted = longest is None or longest > off_within
        if wanted != on:
            (any_model.enable_adapters if wanted else any_model.disable_adapters)()
            on = wanted

    return model.register_forward_pre_hook(switch, with_kwargs=True)


def _longest_prompt(mask: Any) -> int | None:
    prompt = current_phase().prompt_length
    if prompt is None:
        return None
    longest = int(prompt.max()) if isinstance(prompt, Tensor) else prompt
    if isinstance(mask, Tensor) and mask.ndim == 2:
        padding = (mask.long().cumsum(-1) == 0).sum(-1)  # on the left
        longest = int((torch.as_tensor(prompt, device=mask.device) - padding).max())
    return longest
