"""An adapter that is off where it is not needed: for a prompt that fits the window.

Up to ``window + sink_tokens`` tokens the sliding mask equals the full one. For such a prompt the
weights before training are exactly right, and the adapter could only do harm.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from swaa.config import SWAAConfig
from swaa.extras import install_line
from swaa.integrations.transformers.mask import RowInfo
from swaa.phase import Phase, current_phase

ADAPTER_KEY = "swaa_adapter"
"""Key of the adapter's config.json."""
BASE = "__base__"
"""PEFT's name for "no adapter", where each sequence of a batch names its adapter."""
_OFF: ContextVar[tuple[bool, ...]] = ContextVar("swaa_adapter_off", default=())


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What an adapter folder says in addition to its weights.

    Attributes:
        base: the model it was trained on, as it was typed.
        off_within: prompts of at most this many tokens are answered without the adapter;
            ``None``: it is always on.
    """

    base: str
    off_within: int | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def fits(config: SWAAConfig) -> int | None:
    """Longest prompt whose mask is the full one (tokens); ``None``: the model never slides."""
    return None if config.window is None else config.window + config.sink_tokens


def read_adapter(name: str) -> AdapterSettings | None:
    """The settings of the adapter in a folder; ``None``: the folder holds no swaa adapter."""
    path = Path(name).expanduser() / "config.json"
    if not path.is_file() or not (path.parent / "adapter_config.json").is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8")).get(ADAPTER_KEY)
    return AdapterSettings(**values) if isinstance(values, Mapping) else None


def put_adapter_on(model: PreTrainedModel, folder: str | Path) -> None:
    """Load an adapter onto its base model, unmerged, with its recipe and its switch.

    ``swaa.adapt(model)`` then needs no configuration.

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


def switch_by_length(model: PreTrainedModel, off_within: int) -> Switch:
    """Turn the adapter off in forward passes whose prompt is short enough, else on.

    The longest prompt of a batch decides, anew in each call of ``generate``. Where the prompt's
    length is unknown the adapter is on.

    Args:
        model: a model with an adapter; ``generate`` of an adapted model knows the prompt's length.
        off_within: longest prompt without the adapter (tokens, without padding).

    Returns:
        The switch; its ``remove()`` ends the switching.
    """
    switch = Switch(off_within)
    switch.install(model)
    return switch


class Switch:
    """Decides per forward pass whether an adapter is off; no module's state changes.

    Args:
        off_within: longest prompt without the adapter (tokens).
    """

    def __init__(self, off_within: int) -> None:
        self.off_within = off_within
        self._hooks: list[RemovableHandle] = []
        self._off_in_compiled_code = False  # read and written while a graph is traced only

    def install(self, model: PreTrainedModel) -> None:
        """Hook the model, and every layer that carries an adapter."""
        layers = [m for m in model.modules() if isinstance(m, _adapter_classes())]
        self._hooks = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
            *(m.register_forward_pre_hook(self._bypass, with_kwargs=True) for m in layers),
        ]

    def remove(self) -> None:
        """Remove the hooks: from now on the adapter is always on."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        if torch.compiler.is_compiling():
            self._off_in_compiled_code = self._short(_phase_of_mask(mask), None)
            return
        phase = current_phase()
        _OFF.set((*_OFF.get(), self._short(phase, mask)))

    def _leave(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            _OFF.set(_OFF.get()[:-1])

    def _bypass(self, _layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            off = self._off_in_compiled_code
        else:
            off = _OFF.get()[-1:] == (True,)
        return (args, {**kwargs, "adapter_names": [BASE] * len(args[0])}) if off else None

    def _short(self, phase: Phase, mask: Any) -> bool:
        longest = phase.longest if phase.longest is not None else _longest_prompt(phase, mask)
        return longest is not None and longest <= self.off_within


def _adapter_classes() -> tuple[type, ...]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return BaseTunerLayer, AuxiliaryTrainingWrapper


def _phase_of_mask(mask: Any) -> Phase:
    """The phase that a mask carries: compiled code, which cannot ask for it, receives it so."""
    if isinstance(mask, dict):
        mask = next(iter(mask.values()))
    return mask.phase if isinstance(mask, RowInfo) else Phase()


def _longest_prompt(phase: Phase, mask: Any) -> int | None:
    prompt = phase.prompt_length
    if prompt is None:
        return None
    longest = int(prompt.max()) if isinstance(prompt, Tensor) else prompt
    if isinstance(mask, Tensor) and mask.ndim == 2:
        padding = (mask.long().cumsum(-1) == 0).sum(-1)  # on the left
        longest = int((torch.as_tensor(prompt, device=mask.device) - padding).max())
    return longest
