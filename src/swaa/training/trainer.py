"""TRL's SFTTrainer with answer rows declared, and with losses over answer rows only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from swaa.training.conversations import TrainingData
from swaa.training.forward import attach_losses, student_losses, teacher_states
from swaa.training.losses import AnswerLosses
from swaa.training.settings import TrainingSettings

Progress = Callable[[float, Mapping[str, Any]], None]
"""Called with the share done and a step's numbers."""


class SlidingTrainer(SFTTrainer):
    """Trains an adapted model's LoRA under the mask it will be served with.

    Args:
        model: adapted, without LoRA; it gets one.
        tokenizer: the model's.
        data: what is trained on.
        settings: how to train.
        folder: of checkpoints.
        mixed_precision: compute in bfloat16, with adapters and optimiser in float32.
        progress: called after each step with the share done, 0 to 1, and the step's numbers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: TrainingData,
        settings: TrainingSettings,
        *,
        folder: str | Path,
        mixed_precision: bool,
        progress: Progress | None = None,
    ) -> None:
        self._settings = settings
        super().__init__(
            model=model,
            args=trainer_arguments(settings, folder, mixed_precision, model.device),
            train_dataset=_dataset(data),
            processing_class=tokenizer,
            peft_config=lora_config(settings),
        )
        self.remove_callback(PrinterCallback)
        if progress is not None:
            self.add_callback(_Reporter(progress))
        # TRL has put its own losses into the model's forward; replace them with ours.
        attach_losses(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Like Transformers', but without a warm-up of one step, which would run at rate 0.

        Args:
            num_training_steps: all steps of the training.
            optimizer: the optimizer whose rate is scheduled.
        """
        steps = int(num_training_steps * self._settings.warmup)
        self.args.warmup_steps = steps if steps > 1 else 0
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The objective's sum over a batch's answer tokens, divided by the step's answer tokens."""
        teacher = teacher_states(model, inputs) if self._settings.teaches else None
        found = student_losses(model, inputs, teacher=teacher)
        self._note(found)
        total = found.kl if self._settings.objective == "kl" else found.sft
        if self._settings.objective == "sft+kl":
            total = found.sft + found.kl
        count = found.tokens if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, {}) if return_outputs else loss

    def _note(self, found: AnswerLosses) -> None:
        """Means over the answer tokens since the last log, for the curve."""
        totals = torch.stack([found.sft, found.kl, found.right, found.tokens]).detach()
        totals = self.accelerator.reduce(totals, reduction="sum")
        sums: Any = self._metrics["train"]
        sums["answer totals"].append(totals)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss to what is logged."""
        totals = self._metrics["train"].pop("answer totals", None)
        if totals:
            sft, kl, right, tokens = torch.stack(totals).sum(0).tolist()
            count = max(1.0, tokens)
            logs.update(sft=sft / count, accuracy=right / count, answer_tokens=tokens)
            if self._settings.teaches:
                logs["kl"] = kl / count
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card: ``training.json`` records what was trained."""

    def _send_telemetry(self) -> None:
        """Send nothing."""


class _Reporter(TrainerCallback):
    """Reports each step's numbers."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs: dict[str, Any] = kwargs.get("logs") or {}
        if state.is_world_process_zero and "loss" in logs:
            self._progress(state.global_step / max(1, state.max_steps), logs)


def lora_config(settings: TrainingSettings) -> LoraConfig:
    """The adapter that the settings describe."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
    )


def trainer_arguments(
    settings: TrainingSettings, folder: str | Path, mixed_precision: bool, device: torch.device
) -> SFTConfig:
    """The settings in the terms of TRL and Transformers."""
    constant = settings.schedule == "constant"
    options: dict[str, Any] = {
        "save_strategy": "no" if settings.save_every is None else "steps",
        "save_steps": settings.save_every or 0,
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "max_steps": -1 if settings.max_steps is None else settings.max_steps,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if constant else settings.schedule,
        "warmup_steps": settings.warmup,
        "max_grad_norm": settings.clip,
        "bf16": mixed_precision,
        "gradient_checkpointing": settings.checkpointing,
        "packing": settings.packing,
        "max_length": settings.max_length,
        "train_sampling_strategy": "group_by_length" if settings.group_by_length else "random",
        "seed": settings.seed,
        "data_seed": settings.seed,
        "use_cpu": device.type == "cpu",
        "logging_steps": 1,
        "logging_first_step": True,
        "disable_tqdm": True,
        "report_to": settings.tracker,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": device.type == "cuda",
        # The data is ready; only packing changes it.
        "dataset_kwargs": {"skip_prepare_dataset": not settings.packing},
    }
    return SFTConfig(**options)


def _dataset(data: TrainingData) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [list(example.input_ids) for example in data.examples],
            "labels": [list(example.labels) for example in data.examples],
        }
    )
