"""Teacher-forced passes over calibration samples; candidates share their common computation.

A batch goes through the model in two parts: the *prefix*, prompt rows that are in no tail and no
answer, and the *suffix*, the last prompt rows and the answer. A candidate is measured against a
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
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from swaa.adaptation import adapt, restore
from swaa.config import LayerPlan, SWAAConfig
from swaa.integrations.transformers.attention import attach, attached
from swaa.integrations.transformers.cache_name import cache_argument
from swaa.integrations.transformers.support import find_layers, kv_heads_of
from swaa.memory import explain_out_of_memory
from swaa.models import LoadedModel
from swaa.phase import prompt_length
from swaa.selection import batches
from swaa.selection.batches import Batch, Rows, Scores, TeacherForced
from swaa.selection.restart import find_decoder_layers, recorded, restarted

Plans = tuple[LayerPlan, ...]


@dataclass
class _Trace:
    """What is kept of a reference: each layer's outputs in both parts, and its cache."""

    plans: Plans
    prefix: list[Any] = field(default_factory=list)
    suffix: list[Any] = field(default_factory=list)
    cache: list[Any] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


class SharedPasses(AbstractContextManager["SharedPasses"]):
    """Measures plans on samples; the model is adapted only inside ``with``.

    Args:
        loaded: model and tokenizer.
        samples: whose answers are predicted.
        batch_size: samples at once.
        backend: attention backend.
        tail: the longest dense tail of any plan to come (tokens).
        near: window and sinks alone, used to find rows that look far; needed where samples
            are ``far``.

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
        near: LayerPlan | None = None,
    ) -> None:
        self._model: Any = loaded.model
        self._backend = backend
        self._tail = tail
        self._layers = find_decoder_layers(loaded.model)
        self._attention = find_layers(loaded.model).full
        self._order = [sample.id for sample in samples]
        self._batches = list(batches.make(loaded, samples, batch_size, tail))
        keep = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._keeps_logits = keep
        self._full: Plans = (LayerPlan(window=None),) * len(self._layers)
        self._near = near
        # By batch, made once: log-probabilities of full attention, and the rows that count. And
        # the last reference, which is worth keeping only where there is one batch.
        self._full_logprobs: dict[int, Tensor] = {}
        self._counted: dict[int, Tensor] = {}
        self._last: _Trace | None = None

    @property
    def able(self) -> tuple[int, ...]:
        """Layers that can slide."""
        return tuple(sorted(self._attention))

    @property
    def kv_heads(self) -> list[int]:
        """KV heads of each layer of the model."""
        return kv_heads_of(self._model, find_layers(self._model))

    @property
    def depth(self) -> int:
        """Layers of the model."""
        return len(self._layers)

    def __enter__(self) -> SharedPasses:
        # Any configuration that slides: the plans are replaced before each pass.
        adapt(self._model, SWAAConfig(window=1), backend=self._backend, trial=False, quiet=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._last = None
        self._full_logprobs.clear()
        self._counted.clear()
        restore(self._model)

    def measure(
        self, reference: Plans, candidates: Sequence[Plans], *, kl: bool = False
    ) -> Iterator[Scores]:
        """Scores of each candidate, in order.

        The reference is computed once per batch, then each candidate from its first different layer
        on: at most one pass each.

        Args:
            reference: what candidates are computed from; best plans one step away from them.
            candidates: what to measure.
            kl: compare with full attention too: one more pass.

        Raises:
            ValueError: when a batch does not fit into the device's memory.
        """
        if len(self._batches) == 1:  # yield each candidate as soon as it is measured
            (batch,) = self._batches
            for rows in self._batch_scores(0, batch, reference, candidates, kl):
                yield self._gather([(batch.names, rows)])
            return
        parts: list[list[tuple[list[str], Rows]]] = [[] for _ in candidates]
        for number, batch in enumerate(self._batches):
            scored = self._batch_scores(number, batch, reference, candidates, kl)
            for part, rows in zip(parts, scored, strict=True):
                part.append((batch.names, rows))
        for part in parts:
            yield self._gather(part)

    def _batch_scores(
        self,
        number: int,
        batch: Batch,
        reference: Plans,
        candidates: Sequence[Plans],
        kl: bool,
    ) -> Iterator[Rows]:
        """Scores of each candidate on one batch, in order."""
        work = f"{len(batch.names)} samples of {batch.ids.shape[1]} tokens"
        with explain_out_of_memory(work, "lower --batch-size"):
            with torch.inference_mode():
                base = self._reference(batch, reference)
                full = self._full_of(number, batch, base) if kl else None
                counted = self._rows_of(number, batch, base)
            for plans in candidates:
                with torch.inference_mode():
                    logits = (base if plans == reference else self._run(batch, plans, base)).logits
                    rows = batches.score(batch, logits, full, counted)
                yield rows

    def _reference(self, batch: Batch, plans: Plans) -> _Trace:
        if self._last is not None and self._last.plans == plans:
            return self._last
        self._last = None  # frees it before the next one is made
        trace = self._run(batch, plans, None)
        if len(self._batches) == 1:
            self._last = trace
        return trace

    def _full_of(self, number: int, batch: Batch, base: _Trace) -> Tensor:
        if number not in self._full_logprobs:
            same = base.plans == self._full
            logits = (base if same else self._run(batch, self._full, base)).logits
            self._full_logprobs[number] = logits.log_softmax(-1)
        return self._full_logprobs[number]

    def _rows_of(self, number: int, batch: Batch, base: _Trace) -> Tensor:
        """Which rows count; see :func:`swaa.selection.batches.far_rows`."""
        if not bool(batch.far.any()):
            return batch.inside
        if number not in self._counted:
            assert self._near is not None, "rows that look far are told by a window"
            near = self._plans_of(self._near)
            logits = self._run(batch, near, base).logits
            full = self._full_of(number, batch, base)
            self._counted[number] = batches.far_rows(batch, full, logits.log_softmax(-1))
        return self._counted[number]

    def _plans_of(self, plan: LayerPlan) -> Plans:
        """One plan for every layer that can slide."""
        return tuple(
            plan if index in self._attention else LayerPlan(window=None)
            for index in range(self.depth)
        )

    def _gather(self, parts: Sequence[tuple[list[str], Rows]]) -> Scores:
        rows = {
            name: values
            for names, scored in parts
            for name, values in zip(names, zip(*scored, strict=True), strict=True)
        }
        nll, kl, exact = zip(*(rows[name] for name in self._order), strict=True)
        return Scores(list(nll), [] if None in kl else list(kl), list(exact))

    def _run(self, batch: Batch, plans: Plans, base: _Trace | None) -> _Trace:
        """Run both parts under the plans; what ``base`` has in common with them is reused."""
        assert all(plan.dense_tail <= self._tail for plan in plans), "the tail reaches the prefix"
        for index, module in self._attention.items():
            attach(module, replace(attached(module), plan=plans[index]))
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
            # Shallow copies: a pass appends by making new tensors, so the kept ones do not change.
            cache.layers = [copy.copy(layer) for layer in trace.cache]
        first = 0 if base is None else _first_difference(plans, base.plans, lambda plan: plan)
        kept = base.suffix[first - 1] if base and first else None
        rows = (batch.prefix, batch.ids.shape[1])
        trace.suffix, trace.logits = self._part(batch, cache, rows, first, kept)
        return trace

    def _part(
        self,
        batch: Batch,
        cache: DynamicCache,
        rows: tuple[int, int],
        first: int,
        kept: Any,
    ) -> tuple[list[Any], Tensor]:
        """Pass rows ``[begin, end)`` through the layers from ``first`` on.

        Returns:
            Each layer's output (nothing if the pass skips layers: it is not a reference then), and
            the logits of the rows that predict an answer token.
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
        # A row predicts the token after it; the last row predicts none of ours.
        return outputs, logits[:, -wanted:-1].float()


def _of_prefix(plan: LayerPlan) -> LayerPlan:
    """The part of a plan that concerns rows before the tail."""
    return LayerPlan(window=plan.window, sink_tokens=0 if plan.full else plan.sink_tokens)


def _first_difference(ours: Plans, theirs: Plans, view: Any) -> int:
    pairs = zip(ours, theirs, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if view(a) != view(b)), len(ours))
