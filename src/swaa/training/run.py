"""One training, from model and file to adapter, merged checkpoint and curve."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from swaa import results
from swaa.adaptation import adapt
from swaa.adapter import AdapterSettings, fits
from swaa.config import SWAAConfig
from swaa.files import checksum
from swaa.memory import explain_out_of_memory
from swaa.models import LoadedModel
from swaa.pictures import can_draw
from swaa.processes import is_first
from swaa.training.checkpoints import save_adapter, save_merged
from swaa.training.conversations import TrainingData, check_conversations, load_conversations
from swaa.training.curve import curve, draw_curve, load_curve, save_curve
from swaa.training.folder import (
    ADAPTER,
    CHECKPOINTS,
    CURVE,
    MERGED,
    RECORD,
    Left,
    hold,
    last_checkpoint,
    left_to_do,
    require_free,
)
from swaa.training.losses import check_head
from swaa.training.settings import TrainingSettings
from swaa.training.trainer import Progress, SlidingTrainer

PLOT = "loss.png"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training produced.

    Attributes:
        adapter: folder of the adapter.
        merged: folder of the merged checkpoint; ``None``: merging was not requested.
        plot: the curve's picture; ``None``: matplotlib is missing.
        rows: the curve, one row per step.
        examples: conversations trained on; ``None``: the process ended before recording them.
        skipped: one reason for each line left out.
        seconds: wall time of the steps; ``None``: as for ``examples``.
        summary: one line: what was active on the model, or that only the merging remained.
    """

    adapter: Path
    merged: Path | None
    plot: Path | None
    rows: tuple[dict[str, Any], ...]
    examples: int | None
    skipped: tuple[str, ...]
    seconds: float | None
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
        loaded: the model, which is changed.
        config: the recipe.
        data: chat-format JSONL; see :mod:`swaa.training.conversations`.
        out: folder for everything; new, empty, or left by a training that saved nothing, unless
            ``resume``.
        settings: how to train.
        name: of the model, as typed.
        reload: loads the model again, in float32, to merge the adapter into; ``None``: no merging.
        backend: attention backend.
        resume: go on from the last checkpoint; if all steps are done, only merge.
        skip_bad: leave bad lines out.
        adapter_always: keep the adapter on for prompts that fit the window.
        progress: see :class:`swaa.training.trainer.SlidingTrainer`.

    Raises:
        ValueError: for bad data, a recipe under which nothing slides, a model that cannot be
            trained, a folder that is in use, or a step that does not fit into the device's memory.
        FileNotFoundError: for a file that is not there, or no checkpoint to resume from.
    """
    _require_sliding(config)
    data, out = Path(data).expanduser(), Path(out)
    longest = min(settings.max_length, loaded.trained_context or settings.max_length)
    read = load_conversations(data, loaded.tokenizer, max_length=longest, skip_bad=skip_bad)
    most = max(len(example.input_ids) for example in read.examples)
    if config.covers(most):
        what = f"every conversation, of up to {most:,} tokens"
        logging.getLogger("swaa").warning("swaa train: %s", config.idle(what))
    record = _record(name, config, data, settings)
    dtype, base_config = loaded.model.dtype, loaded.model.config.to_diff_dict()
    with hold(out):
        left = left_to_do(out, record, resume=resume, merges=reload is not None)
        if left == "merging" and reload is not None:
            return _finish(out, config, reload, dtype=dtype)
        check_head(loaded.model)
        summary = adapt(loaded.model, config, backend=backend, quiet=True).summary
        loaded.model.train()
        trainer = SlidingTrainer(
            loaded.model,
            loaded.tokenizer,
            read,
            settings,
            folder=out / CHECKPOINTS,
            mixed_precision=dtype == torch.bfloat16,
            progress=progress,
        )
        trainer.accelerator.wait_for_everyone()  # until every process has looked into the folder
        if trainer.is_world_process_zero():
            _write_record(out, record)
        with explain_out_of_memory(_work(read, settings), _advice(settings)):
            seconds = _do_steps(trainer, last_checkpoint(out) if resume else None)
        rows = curve(trainer.state.log_history)
        if trainer.is_world_process_zero():
            save_curve(rows, out / CURVE)
            if can_draw():
                title = f"{loaded.name}: {settings.objective}, {config.describe()}"
                draw_curve(rows, out / PLOT, title=title)
        adapter = AdapterSettings(
            base=_base(name), off_within=None if adapter_always else fits(config)
        )
        save_adapter(trainer, out / ADAPTER, config, adapter, base_config=base_config)
        if trainer.is_world_process_zero():
            _write_record(out, {**record, **_outcome(trainer, seconds, read)})
            if reload is not None:
                _merge(out, config, reload, dtype=dtype)
        trainer.accelerator.wait_for_everyone()
    return Training(
        adapter=out / ADAPTER,
        merged=None if reload is None else out / MERGED,
        plot=out / PLOT if can_draw() else None,
        rows=tuple(rows),
        examples=len(read.examples),
        skipped=read.skipped,
        seconds=seconds,
        summary=summary,
    )


def merge(
    out: str | Path,
    config: SWAAConfig,
    reload: Callable[[], LoadedModel],
    *,
    dtype: torch.dtype,
) -> Training:
    """Write the merged checkpoint of a training whose steps are done.

    Args:
        out: the training's folder, for which :func:`check` returned that only merging is left.
        config: the recipe.
        reload: loads the model that was trained, in float32.
        dtype: the dtype that it was trained in.

    Raises:
        ValueError: when another process works in the folder.
    """
    out = Path(out)
    with hold(out):
        return _finish(out, config, reload, dtype=dtype)


def check(
    name: str,
    config: SWAAConfig,
    data: str | Path,
    out: str | Path,
    settings: TrainingSettings,
    *,
    resume: bool = False,
    merges: bool = True,
    skip_bad: bool = False,
) -> Left:
    """Find the mistakes in arguments of :func:`train` before minutes are spent on loading a model.

    Args:
        name: this and all other arguments as for :func:`train`.
        config: the recipe.
        data: chat-format JSONL.
        out: folder for everything.
        settings: how to train.
        resume: go on from the last checkpoint.
        merges: whether the adapter will be merged.
        skip_bad: leave bad lines out.

    Returns:
        What is left to do: the training, or only the merging, which is :func:`merge`.

    Raises:
        ValueError: for bad data, a recipe without a window, or a folder that is in use.
        FileNotFoundError: for a file that is not there, or no checkpoint to resume from.
    """
    _require_sliding(config)
    data, out = Path(data).expanduser(), Path(out)
    check_conversations(data, skip_bad=skip_bad)
    if is_first():  # in other processes, the first may already hold the folder
        require_free(out)
    record = _record(name, config, data, settings)
    return left_to_do(out, record, resume=resume, merges=merges)


def _record(
    name: str, config: SWAAConfig, data: Path, settings: TrainingSettings
) -> dict[str, Any]:
    """Everything that distinguishes this training."""
    return {
        "model": Path(name).name,
        "swaa": config.to_dict(),
        "data": data.name,
        "data_revision": checksum([data]),
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
    }


def _require_sliding(config: SWAAConfig) -> None:
    """Require a window; :func:`swaa.adapt` refuses a window that full layers leave no layer for."""
    if config.window is None:
        raise ValueError(
            "the recipe leaves every layer full: there is no mask to train for; choose another"
            " --recipe, or give --window"
        )


def _base(name: str) -> str:
    """The name by which an adapter finds its base: a folder's absolute path, else as typed."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _do_steps(trainer: Any, checkpoint: Path | None) -> float:
    """Do the steps; returns the seconds that they take."""
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return time.perf_counter() - started


def _work(read: TrainingData, settings: TrainingSettings) -> str:
    """The work that may not fit into the device's memory."""
    if settings.packing:
        return f"{settings.batch_size} packs of {settings.max_length} tokens at once"
    longest = max(len(example.input_ids) for example in read.examples)
    return f"{settings.batch_size} conversations of up to {longest} tokens at once"


def _advice(settings: TrainingSettings) -> str:
    """What to lower in that case, and what is kept of the training."""
    ways = ["lower --batch-size"] if settings.batch_size > 1 else []
    ways.append("lower --max-length (--skip-bad leaves longer conversations out)")
    if not settings.checkpointing:
        ways.append("leave --no-checkpointing out")
    kept = "no checkpoint was written, so the folder can be used again"
    if settings.save_every is not None:
        kept = (
            "a checkpoint that was written can be resumed with the same settings only, where there"
            " is more memory; with others name another folder by --out"
        )
    return f"{', or '.join(ways)}; {kept}"


def _merge(
    out: Path, config: SWAAConfig, reload: Callable[[], LoadedModel], *, dtype: torch.dtype
) -> None:
    base = reload()
    save_merged(base.model, base.tokenizer, out / ADAPTER, out / MERGED, config, dtype=dtype)


def _finish(
    out: Path, config: SWAAConfig, reload: Callable[[], LoadedModel], *, dtype: torch.dtype
) -> Training:
    """Merge the adapter; describe the training from what its folder records."""
    record = json.loads((out / RECORD).read_text("utf-8"))
    rows = load_curve(out / CURVE)
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu)
    state.wait_for_everyone()  # until every process has looked into the folder
    if state.is_main_process:
        _merge(out, config, reload, dtype=dtype)
        if "steps" not in record:  # the process ended after its last step, before recording it
            _write_record(out, {**record, "steps": rows[-1]["step"]})
    state.wait_for_everyone()
    return Training(
        adapter=out / ADAPTER,
        merged=out / MERGED,
        plot=out / PLOT if (out / PLOT).exists() else None,
        rows=tuple(rows),
        examples=record.get("examples"),
        skipped=tuple(record.get("skipped", ())),
        seconds=record.get("provenance", {}).get("seconds"),
        summary=f"trained already under {config.describe()}; merged",
    )


def _outcome(trainer: Any, seconds: float, read: TrainingData) -> dict[str, Any]:
    provenance = results.record_provenance(
        device=str(trainer.args.device), seconds=seconds, packages=("trl", "peft", "accelerate")
    )
    return {
        "steps": trainer.state.global_step,
        "processes": trainer.accelerator.num_processes,
        "examples": len(read.examples),
        "skipped": list(read.skipped),
        "provenance": dataclasses.asdict(provenance),
    }


def _write_record(out: Path, record: dict[str, Any]) -> None:
    results.write_whole(out / RECORD, json.dumps(record, indent=2) + "\n")
