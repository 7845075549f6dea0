"""Calibration samples as batches of token ids, and scores of predictions of their answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from swaa.models import LoadedModel

FAR_SHARE = 0.25
"""Share of a running text's rows that count: those that most need distant keys."""


class TeacherForced(NamedTuple):
    """A prompt, and the answer whose tokens are predicted.

    Attributes:
        id: of the sample.
        prompt: token ids, template and answer prefix included.
        answer: token ids that follow.
        far: whether only those answer rows count that look far, :data:`FAR_SHARE` of them.
    """

    id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    far: bool = False


class Scores(NamedTuple):
    """How well a candidate predicts the answers, by sample, over the rows that count.

    Attributes:
        nll: mean negative log-likelihood of the answer's tokens (nats).
        kl: mean divergence of the answer's distributions from full attention's (nats); empty if
            not asked for.
        exact: whether each answer token is the most likely one, as in greedy decoding.
    """

    nll: list[float]
    kl: list[float]
    exact: list[bool]


@dataclass
class Batch:
    """Sequences with a common end, padded on the left.

    Attributes:
        names: of the samples.
        ids: token ids, ``[batch, tokens]``.
        mask: 0 for padding, ``[batch, tokens]``; ``None``: there is none.
        positions: of the tokens, ``[batch, tokens]``.
        answers: tokens of each answer, ``[batch]``.
        far: whether only rows that look far count, ``[batch]``.
        prefix: number of first rows that are in no tail and no answer.
    """

    names: list[str]
    ids: Tensor
    mask: Tensor | None
    positions: Tensor
    answers: Tensor
    far: Tensor
    prefix: int

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return int(self.answers.max())

    @property
    def prompt_length(self) -> int | Tensor:
        """Where the answers begin: one position, or ``[batch]``."""
        ends = self.ids.shape[1] - self.answers
        return int(ends[0]) if bool((ends == ends[0]).all()) else ends

    @property
    def inside(self) -> Tensor:
        """Which of the last rows predict a token of the answer, ``[batch, longest]``."""
        counts = self.answers[:, None]
        return torch.arange(self.longest, device=counts.device)[None] >= self.longest - counts


class Rows(NamedTuple):
    """Scores of one batch."""

    nll: list[float]
    kl: list[float | None]
    exact: list[bool]


def score(batch: Batch, logits: Tensor, full: Tensor | None, counted: Tensor) -> Rows:
    """The scores of each sequence.

    Args:
        batch: of the sequences.
        logits: of the rows that predict the answers, ``[batch, rows, vocab]``.
        full: full attention's log-probabilities, same shape; ``None``: compute no divergence.
        counted: rows that count, bool ``[batch, rows]``.
    """
    targets = batch.ids[:, -logits.shape[1] :]
    logprobs = logits.log_softmax(-1)
    nll = -logprobs.gather(2, targets[..., None])[..., 0]
    exact = ((logits.argmax(-1) == targets) | ~counted).all(-1)
    kls: list[float | None] = [None] * len(batch.names)
    if full is not None:
        kls = list(_mean(_divergence(full, logprobs), counted))
    return Rows(_mean(nll, counted), kls, exact.tolist())


def far_rows(batch: Batch, full: Tensor, near: Tensor) -> Tensor:
    """Which rows count: for ``far`` samples, those that a window alone predicts worst.

    Args:
        batch: of the sequences.
        full: full attention's log-probabilities, ``[batch, rows, vocab]``.
        near: log-probabilities with window and sinks alone, same shape.

    Returns:
        bool ``[batch, rows]``: all rows of the answer, or for ``far`` samples the share
        :data:`FAR_SHARE` whose distributions are farthest from full attention's.
    """
    inside = batch.inside
    divergence = torch.where(inside, _divergence(full, near), -torch.inf)
    order = divergence.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    most = (batch.answers * FAR_SHARE).round().clamp(min=1)[:, None]
    return inside & ((rank < most) | ~batch.far[:, None])


def make(
    loaded: LoadedModel, samples: Sequence[TeacherForced], size: int, tail: int
) -> Iterator[Batch]:
    """Batches of samples of similar lengths, the longest first.

    Args:
        loaded: its model says on which device.
        samples: of any lengths.
        size: sequences in a batch.
        tail: the longest dense tail (tokens).
    """
    device = loaded.model.device
    ordered = sorted(samples, key=lambda sample: -len(sample.prompt) - len(sample.answer))
    for start in range(0, len(ordered), size):
        group = ordered[start : start + size]
        texts = [sample.prompt + sample.answer for sample in group]
        total = max(map(len, texts))
        ids, mask = (torch.zeros(len(group), total, dtype=torch.long) for _ in range(2))
        for row, text in enumerate(texts):
            ids[row, total - len(text) :] = torch.tensor(text)
            mask[row, total - len(text) :] = 1
        answers = torch.tensor([len(sample.answer) for sample in group])
        # A sequence that fits into the suffix would be only padding in the prefix.
        shortest = min(map(len, texts))
        prefix = total - int(answers.max()) - max(tail, 1)
        yield Batch(
            names=[sample.id for sample in group],
            ids=ids.to(device),
            mask=None if bool(mask.all()) else mask.to(device),
            positions=(mask.cumsum(-1) - 1).clamp(min=0).to(device),
            answers=answers.to(device),
            far=torch.tensor([sample.far for sample in group]).to(device),
            prefix=prefix if prefix > total - shortest else 0,
        )


def _divergence(full: Tensor, logprobs: Tensor) -> Tensor:
    return (full.exp() * (full - logprobs)).sum(-1)


def _mean(values: Tensor, counted: Tensor) -> list[float]:
    return (torch.where(counted, values, 0.0).sum(-1) / counted.sum(-1)).tolist()
