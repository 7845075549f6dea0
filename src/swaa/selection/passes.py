"""Teacher-forced passes over calibration samples that share what candidates have in common.

A batch goes through the model in two parts: the *prefix*, prompt rows that no tail and no answer
touches, and the *suffix*, the last prompt rows and the answer. A candidate is measured against a
*reference* whose keys, values and hidden states are kept:

- layers below the first one that differs are not computed again, in either part;
- where only full decode or the dense tail differ, the prefix is not computed at all.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from swaa.adaptation import adapt, restore
from swaa.config import LayerPlan, SWAAConfig
from swaa.integrations.transformers.attention import LayerAttention
from swaa.integrations.transformers.cache_name import cache_argument
from swaa.integrations.transformers.support import find_layers
from swaa.memory import explain_out_of_memory
from swaa.models import LoadedModel
from swaa.phase import prompt_length
from swaa.selection.restart import find_decoder_layers, recorded, restarted

Plans = tuple[LayerPlan, ...]


class TeacherForced(NamedTuple):
    """A prompt, and the answer whose tokens are predicted.

    Attributes:
        id: of the sample.
        prompt: token ids, template and answer prefix included.
        answer: token ids that follow.
    """

    id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Scores(NamedTuple):
    """How a candidate predicts the answers, sample by sample.

    Attributes:
        nll: mean negative log-likelihood of the answer's tokens (nats).
        kl: mean divergence of the answer's distributions from full attention's (nats); empty when
            it was not asked for.
        exact: whether each answer token is the most likely one: greedy decoding would say it.
    """

    nll: list[float]
    kl: list[float]
    exact: list[bool]


@dataclass
class _Batch:
    """Sequences that end together: ``[batch, tokens]``, padded on the left."""

    names: list[str]
    ids: Tensor
    mask: Tensor | None
    positions: Tensor
    answers: Tensor
    prefix: int

    @property
    def longest(self) -> int:
        return int(self.answers.max())

    @property
    def prompt_length(self) -> int | Tensor:
        ends = self.ids.shape[1] - self.answers
        return int(ends[0]) if bool((ends == ends[0]).all()) else ends


@dataclass
class _Trace:
    """What is kept of a reference: per layer, its outputs of both parts and its cache."""

    plans: Plans
    prefix: list[Any] = field(default_factory=list)
    suffix: list[Any] = field(default_factory=list)
    cache: list[Any] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


class SharedPasses(AbstractContextManager["SharedPasses"]):
    """Measures plans on samples; the model is adapted only inside ``with``.

    Args:
        loaded: model and tokenizer.
        samples: what is predicted.
        batch_size: samples at once.
        backend: attention backend.
        tail: the longest dense tail of any plan to come (tokens).

    Raises:
        ValueError: for a model that cannot be adapted, or batches that do not fit into memory.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        samples: Sequence[TeacherForced],
        *,
        batch_size: int = 1,
        backend: str = "auto",
        tail: int = 128,
    ) -> None:
        self._model: Any = loaded.model
        self._backend = backend
        self._tail = tail
        self._layers = find_decoder_layers(loaded.model)
        self._attention = find_layers(loaded.model).full
        self._order = [sample.id for sample in samples]
        self._batches = list(_batches(loaded, samples, batch_size, tail))
        keep = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._keeps_logits = keep
        self._full: Plans = (LayerPlan(window=None),) * len(self._layers)
        # Log-probabilities of full attention, by batch: made once. And the last reference, which
        # is worth keeping where there is one batch only.
        self._full_logprobs: dict[int, Tensor] = {}
        self._last: _Trace | None = None

    @property
    def able(self) -> tuple[int, ...]:
        """Layers that can slide."""
        return tuple(sorted(self._attention))

    @property
    def depth(self) -> int:
        """Layers of the model."""
        return len(self._layers)

    def __enter__(self) -> SharedPasses:
        # Any configuration that slides: the plans are replaced before each pass.
        adapt(self._model, SWAAConfig(window=1), backend=self._backend, quiet=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._last = None
        self._full_logprobs.clear()
        restore(self._model)

    def measure(
        self, reference: Plans, candidates: Sequence[Plans], *, kl: bool = False
    ) -> Iterator[Scores]:
        """Scores of each candidate, in order.

        The reference is computed once a batch, then each candidate from the first layer on in
        which it differs: at most one pass each.

        Args:
            reference: what candidates are computed from; best, what they are one step away from.
            candidates: what to measure.
            kl: compare with full attention too: one pass more.

        Raises:
            ValueError: when a batch does not fit into the device's memory.
        """
        if len(self._batches) == 1:  # each is known as soon as it is measured
            (batch,) = self._batches
            for rows in self._batch_scores(0, batch, reference, candidates, kl):
                yield self._gather([(batch.names, rows)])
            return
        parts: list[list[tuple[list[str], _Rows]]] = [[] for _ in candidates]
        for number, batch in enumerate(self._batches):
            scored = self._batch_scores(number, batch, reference, candidates, kl)
            for part, rows in zip(parts, scored, strict=True):
                part.append((batch.names, rows))
        for part in parts:
            yield self._gather(part)

    def _batch_scores(
        self,
        number: int,
        batch: _Batch,
        reference: Plans,
        candidates: Sequence[Plans],
        kl: bool,
    ) -> Iterator[_Rows]:
        """Scores of each candidate on one batch, in order."""
        work = f"{len(batch.names)} samples of {batch.ids.shape[1]} tokens"
        with explain_out_of_memory(work, "lower --batch-size"):
            with torch.inference_mode():
                base = self._reference(batch, reference)
                full = self._full_of(number, batch, base) if kl else None
            for plans in candidates:
                with torch.inference_mode():
                    logits = (base if plans == reference else self._run(batch, plans, base)).logits
                    rows = _score(batch, logits, full)
                yield rows

    def _reference(self, batch: _Batch, plans: Plans) -> _Trace:
        if self._last is not None and self._last.plans == plans:
            return self._last
        self._last = None  # frees it before the next one is made
        trace = self._run(batch, plans, None)
        if len(self._batches) == 1:
            self._last = trace
        return trace

    def _full_of(self, number: int, batch: _Batch, base: _Trace) -> Tensor:
        if number not in self._full_logprobs:
            same = base.plans == self._full
            logits = (base if same else self._run(batch, self._full, base)).logits
            self._full_logprobs[number] = logits.log_softmax(-1)
        return self._full_logprobs[number]

    def _gather(self, parts: Sequence[tuple[list[str], _Rows]]) -> Scores:
        rows = {
            name: values
            for names, scored in parts
            for name, values in zip(names, zip(*scored, strict=True), strict=True)
        }
        nll, kl, exact = zip(*(rows[name] for name in self._order), strict=True)
        return Scores(list(nll), [] if None in kl else list(kl), list(exact))

    def _run(self, batch: _Batch, plans: Plans, base: _Trace | None) -> _Trace:
        """Both parts under the plans; what ``base`` has in common with them is taken from it."""
        assert all(plan.dense_tail <= self._tail for plan in plans), "the tail reaches the prefix"
        for index, module in self._attention.items():
            attached: LayerAttention = vars(module)["swaa_layer"]
            vars(module)["swaa_layer"] = replace(attached, plan=plans[index])
        depth = len(plans)
        first = 0 if base is None else _first_difference(plans, base.plans, _of_prefix)
        trace = _Trace(plans)
        if first < depth and batch.prefix:
            cache = DynamicCache(config=self._model.config)
            kept = base.prefix[first - 1] if base and first else None
            trace.prefix, _ = self._part(batch, cache, (0, batch.prefix), first, kept)
            trace.cache = list(cache.layers)
        if base is not None:
            trace.cache[:first] = base.cache[:first]
        cache = DynamicCache(config=self._model.config)
        if batch.prefix:
            # Shallow copies: a pass appends by making new tensors, those kept stay as they are.
            cache.layers = [copy.copy(layer) for layer in trace.cache]
        first = 0 if base is None else _first_difference(plans, base.plans, lambda plan: plan)
        kept = base.suffix[first - 1] if base and first else None
        rows = (batch.prefix, batch.ids.shape[1])
        trace.suffix, trace.logits = self._part(batch, cache, rows, first, kept)
        return trace

    def _part(
        self,
        batch: _Batch,
        cache: DynamicCache,
        rows: tuple[int, int],
        first: int,
        kept: Any,
    ) -> tuple[list[Any], Tensor]:
        """Rows ``[begin, end)`` through the layers from ``first`` on.

        Returns:
            What each layer returned (of a pass through all of them; else nothing: it is no
            reference), and the logits of the rows that predict an answer token.
        """
        begin, end = rows
        wanted = batch.longest + 1
        options = {"logits_to_keep": wanted} if self._keeps_logits else {}
        with (
            prompt_length(batch.prompt_length),
            restarted(self._layers, first, kept),
            recorded(self._layers if kept is None else ()) as outputs,
        ):
            logits = self._model(
                input_ids=batch.ids[:, begin:end],
                attention_mask=None if batch.mask is None else batch.mask[:, :end],
                position_ids=batch.positions[:, begin:end],
                use_cache=True,
                **cache_argument(cache),
                **options,
            ).logits
        # A row predicts the token behind it; the last row predicts none of ours.
        return outputs, logits[:, -wanted:-1].float()


class _Rows(NamedTuple):
    """Scores of one batch."""

    nll: list[float]
    kl: list[float | None]
    exact: list[bool]


def _score(batch: _Batch, logits: Tensor, full: Tensor | None) -> _Rows:
    """Per sequence, over its answer's rows. ``logits`` and ``full``: ``[batch, rows, vocab]``."""
    rows = logits.shape[1]
    targets = batch.ids[:, -rows:]
    counts = batch.answers[:, None]
    inside = torch.arange(rows, device=counts.device)[None] >= rows - counts
    logprobs = logits.log_softmax(-1)
    nll = -logprobs.gather(2, targets[..., None])[..., 0]
    exact = ((logits.argmax(-1) == targets) | ~inside).all(-1)
    kls: list[float | None] = [None] * len(batch.names)
    if full is not None:
        divergence = (full.exp() * (full - logprobs)).sum(-1)
        kls = list(_mean(divergence, inside, batch.answers))
    return _Rows(_mean(nll, inside, batch.answers), kls, exact.tolist())


def _mean(values: Tensor, inside: Tensor, counts: Tensor) -> list[float]:
    return (torch.where(inside, values, 0.0).sum(-1) / counts).tolist()


def _of_prefix(plan: LayerPlan) -> LayerPlan:
    """What of a plan concerns rows before the tail."""
    return LayerPlan(window=plan.window, sink_tokens=0 if plan.full else plan.sink_tokens)


def _first_difference(ours: Plans, theirs: Plans, view: Any) -> int:
    pairs = zip(ours, theirs, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if view(a) != view(b)), len(ours))


def _batches(
    loaded: LoadedModel, samples: Sequence[TeacherForced], size: int, tail: int
) -> Iterator[_Batch]:
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
        # A sequence that lay in the suffix as a whole would be padding all through the prefix.
        shortest = min(map(len, texts))
        prefix = total - int(answers.max()) - max(tail, 1)
        yield _Batch(
            names=[sample.id for sample in group],
            ids=ids.to(device),
            mask=None if bool(mask.all()) else mask.to(device),
            positions=(mask.cumsum(-1) - 1).clamp(min=0).to(device),
            answers=answers.to(device),
            prefix=prefix if prefix > total - shortest else 0,
        )
