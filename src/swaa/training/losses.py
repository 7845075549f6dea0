"""Losses over answer rows only, in chunks: logits of all prompt rows never exist.

A prompt of 32,768 tokens times a vocabulary of 151,936 would be 20 GB of float32 logits, twice with
a teacher. Only rows that predict an answer token need logits; those of a chunk are computed, used
and dropped, and recomputed in the backward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from swaa.training.conversations import IGNORED

CHUNK = 256
"""Answer rows whose logits exist at once; with 151,936 words, 156 MB of float32."""


class Head(NamedTuple):
    """From hidden states to logits, as in the model's own code.

    Attributes:
        weight: ``[vocabulary, hidden]``.
        bias: ``[vocabulary]``, or None.
        scale: factor of the logits.
        softcap: bound of a tanh over the logits, or None.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def logits(self, states: Tensor) -> Tensor:
        """float32 ``[rows, vocabulary]`` of hidden states ``[rows, hidden]``."""
        logits = nn.functional.linear(states, self.weight, self.bias).float() * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class AnswerLosses(NamedTuple):
    """Sums over the answer tokens of a batch.

    Attributes:
        sft: negative log-likelihood of the answer (nats).
        kl: divergence from the teacher's distribution (nats); 0 without a teacher.
        tokens: answer tokens.
        right: how many of them were the most likely tokens.
    """

    sft: Tensor
    kl: Tensor
    tokens: Tensor
    right: Tensor


def answer_states(states: Tensor, labels: Tensor) -> Tensor:
    """Hidden states of the rows that predict an answer token, ``[answer tokens, hidden]``.

    Args:
        states: ``[batch, tokens, hidden]``.
        labels: ``[batch, tokens]``, not shifted.
    """
    return states[:, :-1][labels[:, 1:] != IGNORED]


def answer_losses(
    head: Head,
    states: Tensor,
    labels: Tensor,
    *,
    teacher: Tensor | None = None,
    chunk: int = CHUNK,
) -> AnswerLosses:
    """Sums of both losses over the answer tokens.

    The divergence is KL(teacher || student): the student learns the teacher's whole distribution,
    not only the sampled tokens.

    Args:
        head: of the model; the teacher has the same.
        states: ``[batch, tokens, hidden]``.
        labels: ``[batch, tokens]``, not shifted.
        teacher: the teacher's :func:`answer_states`.
        chunk: rows whose logits exist at once.
    """
    rows = answer_states(states, labels)
    targets = labels[:, 1:][labels[:, 1:] != IGNORED]
    # A batch without an answer still needs a gradient, zero: other processes wait for it.
    total = states.new_zeros(3, dtype=torch.float32)
    total = total + 0.0 * states[:, :1].float().sum() * total.new_tensor([1.0, 0.0, 0.0])
    for first in range(0, len(rows), chunk):
        part = slice(first, first + chunk)
        taught = None if teacher is None else teacher[part]
        found: Any = checkpoint(
            _chunk_losses, head, rows[part], targets[part], taught, use_reentrant=False
        )
        total = total + found
    tokens = total.new_tensor(float(len(rows)))
    return AnswerLosses(total[0], total[1], tokens, total[2].detach())


def _chunk_losses(head: Head, rows: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:
    """``[sft, kl, right]``, summed over a chunk."""
    logits = head.logits(rows)
    log_probs = logits.log_softmax(-1)
    sft = nn.functional.nll_loss(log_probs, targets, reduction="sum")
    kl = sft.new_zeros(())
    if teacher is not None:
        with torch.no_grad():
            wanted = head.logits(teacher).log_softmax(-1)
        kl = nn.functional.kl_div(log_probs, wanted, reduction="sum", log_target=True)
    right = (logits.detach().argmax(-1) == targets).sum().to(sft.dtype)
    return torch.stack([sft, kl, right])


def find_head(model: PreTrainedModel) -> Head:
    """The head of a causal language model as it is now (a shard is gathered).

    Some families scale or bound their logits; :func:`check_head` verifies that nothing is missed.
    """
    output: Any = model.get_output_embeddings()
    config: Any = model.config
    weight, bias = output.weight, getattr(output, "bias", None)
    weight, bias = (_whole(x) for x in (weight, bias))
    assert weight is not None
    return Head(weight, bias, _scale(config), getattr(config, "final_logit_softcapping", None))


def check_head(model: PreTrainedModel) -> None:
    """Compare the head with the model's own logits on two tokens.

    Raises:
        ValueError: for a model whose code does more to its logits than :class:`Head` does.
    """
    any_model: Any = model
    ids = torch.tensor([[1, 2]], device=model.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            wanted = any_model(input_ids=ids, use_cache=False).logits[0].float()
            states = any_model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            found = find_head(model).logits(states)
    finally:
        model.train(training)
    tolerance = 64 * torch.finfo(model.dtype).eps * float(wanted.abs().max())
    if found.shape != wanted.shape or float((found - wanted).abs().max()) > tolerance:
        raise ValueError(
            f"{type(model).__name__} makes its logits in a way that swaa does not know, so that it"
            " cannot be trained"
        )


def _scale(config: Any) -> float:
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    divisor = getattr(config, "logits_scaling", None)
    return 1.0 if divisor is None else 1.0 / float(divisor)


def _whole(x: Tensor | None) -> Tensor | None:
    gather = getattr(x, "full_tensor", None)  # a DTensor's, under FSDP2
    return x if gather is None else gather()
