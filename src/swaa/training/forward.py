"""The forward pass of training: losses of answer rows instead of logits for all rows.

The losses are computed inside the model's own forward, because DDP and FSDP hook into it to prepare
gradients and gather shards.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swaa.phase import attention_rows, full_attention
from swaa.training.conversations import IGNORED
from swaa.training.losses import AnswerLosses, answer_losses, answer_states, find_head


def attach_losses(model: PreTrainedModel) -> None:
    """Let ``model(..., answers="losses")`` return losses; without ``answers`` nothing changes.

    Args:
        model: adapted, with its adapters in place; :func:`detach_losses` undoes this.
    """
    plain = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: Any,
        *args: Any,
        answers: str | None = None,
        teacher: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if answers is None:
            return plain(*args, **kwargs)
        labels = kwargs.pop("labels")
        kwargs["use_cache"] = False
        states = self.base_model(*args, **kwargs).last_hidden_state
        if answers == "states":
            return answer_states(states, labels)
        return answer_losses(find_head(self), states, labels, teacher=teacher)

    vars(model)["forward"] = types.MethodType(forward, model)


def detach_losses(model: PreTrainedModel) -> None:
    """Restore the forward of the model's class."""
    vars(model).pop("forward", None)


def student_losses(
    model: Any, inputs: dict[str, Any], *, teacher: Tensor | None = None
) -> AnswerLosses:
    """Losses under the mask that the model will be served with, with gradients.

    Prompt rows slide, answer rows (labels other than -100) follow the recipe's full decode, and the
    dense tail lies before each answer.
    """
    with attention_rows(inputs["labels"] != IGNORED):
        return model(**inputs, answers="losses", teacher=teacher)


def teacher_states(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Hidden states of the teacher: full attention with the weights before training, same tokens.

    The teacher is the model itself with its adapter off and a full mask: no second model in memory.

    Returns:
        ``[answer tokens, hidden]``, without gradient.
    """
    with torch.no_grad(), full_attention(), adapter_off(model):
        return model(**inputs, answers="states")


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Use the weights before training inside the block."""
    while not hasattr(model, "disable_adapter"):
        model = model.module  # the model inside DDP
    training = [module for module in model.modules() if module.training]
    model.eval()  # a teacher has no dropout
    try:
        with model.disable_adapter():
            yield
    finally:
        for module in training:
            module.training = True
