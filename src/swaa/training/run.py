"""One training, from model and file to adapter, merged checkpoint and curve."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from swaa import results
from swaa.adaptation import adapt
from swaa.config import SWAAConfig
from swaa.evaluation.revision import checksum
from swaa.models import LoadedModel
from swaa.training.checkpoints import save_adapter, save_merged
from swaa.training.conversations import check_conversations, load_conversations
from swaa.training.curve import can_draw, curve, draw_curve, save_curve
from swaa.training.losses import check_head
from swaa.training.settings import TrainingSettings
from swaa.training.switch import AdapterSettings, fits
from swaa.training.trainer import Progress, SlidingTrainer

RECORD = "training.json"
"""What was asked, and what it took."""

PLOT = "loss.png"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training left.

    Attributes:
        adapter: folder of the adapter.
        merged: folder of the merged checkpoint; ``None``: none was asked for.
        plot: the curve's picture; ``None``: matplotlib is missing.
        rows: the curve, one row a step.
        examples: conversations trained on.
        skipped: one reason for each line left out.
        seconds: wall time of the steps.
        summary: one line: what was active on the model.
    """

    adapter: Path
    merged: Path | None
    plot: Path | None
    rows: tuple[dict[str, Any], ...]
    examples: int
    skipped: tuple[str, ...]
    seconds: float
    summary: str


def train(
    loaded: LoadedModel,
    config: SWAAConfig,
    data: str | Path,
    out: str | Path,
    settings: TrainingSettings,
    *,
    name: str,
    reload: Callable[[], LoadedModel] | None,
    backend: str = "auto",
    resume: bool = False,
    skip_bad: bool = False,
    adapter_always: bool = False,
    progress: Progress | None = None,
) -> Training:
    """Train a LoRA of a model under a recipe's mask.

    Args:
        loaded: the model; it is changed.
        config: the recipe.
        data: chat-format JSONL; see :mod:`swaa.training.conversations`.
        out: folder for everything; must be new or empty unless ``resume``.
        settings: how.
        name: of the model, as typed.
        reload: loads the model again, in float32, to merge the adapter into; ``None``: no merging.
        backend: attention backend.
        resume: go on from the last checkpoint.
        skip_bad: leave bad lines out.
        adapter_always: keep the adapter on for prompts that fit the window.
        progress: see :class:`swaa.training.trainer.SlidingTrainer`.

    Raises:
        ValueError: for bad data, a model that cannot be trained, or a folder that is in use.
        FileNotFoundError: for a file that is not there, or no checkpoint to resume from.
    """
    data, out = Path(data).expanduser(), Path(out)
    longest = min(settings.max_length, loaded.trained_context or settings.max_length)
    read = load_conversations(data, loaded.tokenizer, max_length=longest, skip_bad=skip_bad)
    record = _record(name, config, data, settings)
    _prepare(out, record, resume=resume)
    check_head(loaded.model)
    dtype, base_config = loaded.model.dtype, loaded.model.config.to_diff_dict()
    summary = adapt(loaded.model, config, backend=backend, quiet=True).summary
    loaded.model.train()
    trainer = SlidingTrainer(
        loaded.model,
        loaded.tokenizer,
        read,
        settings,
        folder=out / "checkpoints",
        mixed_precision=dtype == torch.bfloat16,
        progress=progress,
    )
    trainer.accelerator.wait_for_everyone()  # every process has looked into the folder by now
    if trainer.is_world_process_zero():
        _write(out / RECORD, record)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - started
    adapter = AdapterSettings(
        base=str(Path(name).expanduser().resolve()) if Path(name).expanduser().exists() else name,
        off_within=None if adapter_always else fits(config),
    )
    save_adapter(trainer, out / "adapter", config, adapter, base_config=base_config)
    rows = curve(trainer.state.log_history)
    if trainer.is_world_process_zero():
        save_curve(rows, out / "loss.jsonl")
        if can_draw():
            title = f"{loaded.name}: {settings.objective}, {config.describe()}"
            draw_curve(rows, out / PLOT, title=title)
        if reload is not None:
            base = reload()
            folders = out / "adapter", out / "merged"
            save_merged(base.model, base.tokenizer, *folders, config, dtype=dtype)
        _write(out / RECORD, {**record, **_outcome(trainer, seconds, read.skipped)})
    trainer.accelerator.wait_for_everyone()
    return Training(
        adapter=out / "adapter",
        merged=None if reload is None else out / "merged",
        plot=out / PLOT if can_draw() else None,
        rows=tuple(rows),
        examples=len(read.examples),
        skipped=read.skipped,
        seconds=seconds,
        summary=summary,
    )


def check(
    name: str,
    config: SWAAConfig,
    data: str | Path,
    out: str | Path,
    settings: TrainingSettings,
    *,
    resume: bool = False,
    skip_bad: bool = False,
) -> None:
    """Find the mistakes of :func:`train` that show before minutes go into loading a model.

    Args:
        name: this and all others as of :func:`train`.
        config: the recipe.
        data: chat-format JSONL.
        out: folder for everything.
        settings: how.
        resume: go on from the last checkpoint.
        skip_bad: leave bad lines out.

    Raises:
        ValueError: for bad data, or a folder that is in use.
        FileNotFoundError: for a file that is not there, or no checkpoint to resume from.
    """
    data = Path(data).expanduser()
    check_conversations(data, skip_bad=skip_bad)
    _prepare(Path(out), _record(name, config, data, settings), resume=resume)


def _record(
    name: str, config: SWAAConfig, data: Path, settings: TrainingSettings
) -> dict[str, Any]:
    """Everything that tells this training from another."""
    return {
        "model": Path(name).name,
        "swaa": config.to_dict(),
        "data": data.name,
        "data_revision": checksum([data]),
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
    }


def _prepare(out: Path, record: dict[str, Any], *, resume: bool) -> None:
    """A training never overwrites another, and is never resumed as another."""
    known = json.loads((out / RECORD).read_text("utf-8")) if (out / RECORD).is_file() else None
    if not resume:
        if known is not None:
            raise ValueError(f"{out} holds a training; give --resume, or another folder")
        _require_empty(out)
        return
    if not list((out / "checkpoints").glob("checkpoint-*")):
        raise FileNotFoundError(
            f"{out} holds no checkpoint to resume from; train without --resume, with --save-every"
        )
    changed = [key for key in record if known is not None and known.get(key) != record[key]]
    if changed:
        raise ValueError(
            f"the training in {out} was started with other {', '.join(changed)}; resume it with the"
            f" same command, see {RECORD}"
        )


def _require_empty(out: Path) -> None:
    """Nothing that is not this training's is written into, or over."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a new or empty folder by --out")
    # A process that is ahead, or one that died early, may have left an empty folder in it.
    begun = out / "checkpoints"
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if there == [begun.name] and begun.is_dir() and not any(begun.iterdir()):
        return
    if there:
        raise ValueError(
            f"{out} holds other files ({', '.join(there[:3])}{', ...' if there[3:] else ''}) and no"
            " training; name a new or empty folder by --out"
        )


def _outcome(trainer: Any, seconds: float, skipped: tuple[str, ...]) -> dict[str, Any]:
    provenance = results.record_provenance(
        device=str(trainer.args.device), seconds=seconds, packages=("trl", "peft", "accelerate")
    )
    return {
        "steps": trainer.state.global_step,
        "processes": trainer.accelerator.num_processes,
        "skipped": list(skipped),
        "provenance": dataclasses.asdict(provenance),
    }


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    shutil.move(beside, path)
