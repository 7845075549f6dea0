"""The products of a training: an adapter and a merged checkpoint, both with their recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swaa.adapter import ADAPTER_KEY, AdapterSettings
from swaa.config import SWAAConfig
from swaa.training.folder import RECIPE_FILE, whole_folder


def save_adapter(
    trainer: Any,
    folder: Path,
    config: SWAAConfig,
    adapter: AdapterSettings,
    *,
    base_config: Mapping[str, Any],
) -> None:
    """Write adapter, tokenizer, config.json and recipe; every process must call it.

    Args:
        trainer: after training.
        folder: for the files.
        config: the recipe that was trained under.
        adapter: what it is added to, and when it is off.
        base_config: the model's configuration before training, which changes parts of it.
    """
    state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    values = {key: value for key, value in base_config.items() if key != "quantization_config"}
    values |= {"swaa": config.to_dict(), ADAPTER_KEY: adapter.to_dict()}
    text = json.dumps(values, indent=2, sort_keys=True, default=str)
    with whole_folder(folder) as beside:
        # PEFT would look up the base, even on the hub, to see whether its vocabulary has grown.
        model.save_pretrained(beside, state_dict=state, save_embedding_layers=False)
        # PEFT's model card is a form that nobody filled in.
        (beside / "README.md").unlink(missing_ok=True)
        trainer.processing_class.save_pretrained(beside)
        (beside / "config.json").write_text(f"{text}\n", encoding="utf-8")
        config.save(beside / RECIPE_FILE)


def save_merged(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: Path,
    folder: Path,
    config: SWAAConfig,
    *,
    dtype: torch.dtype,
) -> None:
    """Add the adapter to the weights and write an ordinary checkpoint.

    Args:
        base: the model before training, in float32: sums are rounded once.
        tokenizer: its tokenizer.
        adapter: folder from :func:`save_adapter`.
        folder: for the files.
        config: the recipe, for config.json.
        dtype: of the weights written.
    """
    peft: Any = PeftModel.from_pretrained(base, adapter)
    merged: Any = peft.merge_and_unload().to(dtype)
    merged.config.dtype = dtype
    if getattr(merged.config, "quantization_config", None) is not None:
        del merged.config.quantization_config  # the weights were unpacked when they were read
    vars(merged.config)["swaa"] = config.to_dict()
    with whole_folder(folder) as beside:
        merged.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        config.save(beside / RECIPE_FILE)
