"""One run: a prompt, then an answer; time and memory are measured from the outside."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swaa.attention.call import AttentionCall
from swaa.benchmark.generate.models import SEED
from swaa.benchmark.generate.timing import Marks, synchronize
from swaa.config import LayerPlan
from swaa.integrations.transformers.attention import LayerAttention, attach, attached
from swaa.integrations.transformers.decode_step import DecodeStep
from swaa.integrations.transformers.fast import prefill
from swaa.integrations.transformers.static_cache import StaticSWAACache
from swaa.integrations.transformers.support import find_layers
from swaa.statistics import percentiles

LONGEST = 6.0
"""About how long to time first tokens at one size (seconds)."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is run.

    Attributes:
        tokens: of each prompt.
        batch: sequences.
        new_tokens: of each answer.
        chunk: prompt tokens of a forward pass.
        repeats: most timings of the first token, after a warm-up run of two chunks;
            fewer when they take longer than :data:`LONGEST`, at least one.
    """

    tokens: int
    batch: int
    new_tokens: int
    chunk: int
    repeats: int


class NoAttention:
    """Attention replaced by nothing: returns a tensor that already exists."""

    def __init__(self) -> None:
        self._made: dict[Any, Tensor] = {}

    def run(self, call: AttentionCall) -> Tensor:
        """See :meth:`swaa.integrations.transformers.attention.Backends.run`."""
        key = (call.q.shape, call.q.dtype, call.q.device)
        if key not in self._made:
            self._made[key] = torch.randn_like(call.q, memory_format=torch.contiguous_format)
        return self._made[key]


class Recorder:
    """Passes calls on, and counts those of each kind."""

    def __init__(self, served_by: Any) -> None:
        self._served_by = served_by
        self.calls: dict[tuple[Any, ...], int] = {}

    def run(self, call: AttentionCall) -> Tensor:
        """See :meth:`swaa.integrations.transformers.attention.Backends.run`."""
        key = kind_of(call)
        self.calls[key] = self.calls.get(key, 0) + 1
        return self._served_by.run(call)


def kind_of(call: AttentionCall) -> tuple[Any, ...]:
    """What decides how long a call takes: its sizes and the numbers of its mask.

    A number in a tensor is left out: it belongs to a decoding row, which sees what its cache holds.
    """
    numbers = (call.q_start, call.full_from, call.full_until)
    integers = tuple(None if isinstance(x, Tensor) else x for x in numbers)
    mask = (call.window, call.sink_tokens, call.selected_keys, call.decode_keys)
    return (*call.q.shape, *call.k.shape[1:3], *mask, *integers)


def serve_by(model: PreTrainedModel, backends: Any) -> None:
    """Let the layers of an adapted model call something other than the backends of swaa."""
    for module in find_layers(model).full.values():
        attach(module, LayerAttention(attached(module).plan, backends))


def measure_run(
    model: PreTrainedModel, plans: Sequence[LayerPlan], work: Workload, recorder: Recorder
) -> dict[str, Any]:
    """Measure time and memory of one workload.

    Args:
        model: adapted; its layers call ``recorder``.
        plans: of its layers.
        work: what is run.
        recorder: empty; afterwards it holds the calls of one prompt and of one step.

    Raises:
        torch.OutOfMemoryError: when it does not fit.
    """
    ids = _prompt(model, work)
    first_token = []
    # The first run compiles and loads kernels, for decoding too; two chunks use them all.
    warm = replace(work, tokens=min(work.tokens, 2 * work.chunk), new_tokens=2)
    _, cache, tokens = _first_token(model, plans, warm, ids[:, : warm.tokens])
    _answer(model, cache, tokens, warm)
    del cache, tokens
    while True:
        recorder.calls.clear()
        memory = _Memory()
        seconds, cache, tokens = _first_token(model, plans, work, ids)
        first_token.append(seconds)
        if sum(first_token) + seconds > LONGEST or len(first_token) >= work.repeats:
            break
        del cache, tokens
    prompt_calls = dict(recorder.calls)
    row: dict[str, Any] = {"first_token_s": _timings(first_token), **memory.after_prompt(cache)}
    recorder.calls.clear()
    row |= _answer(model, cache, tokens, work)
    row |= {"peak_bytes": memory.peak()}
    per_token = row["per_token_s"]["p50"]
    row["prefill_tokens_per_s"] = work.batch * work.tokens / row["first_token_s"]["p50"]
    row["decode_tokens_per_s"] = work.batch / per_token
    row["calls"] = {"prompt": prompt_calls, "step": _of_one_step(model, recorder)}
    return row


def _of_one_step(model: PreTrainedModel, recorder: Recorder) -> dict[tuple[Any, ...], int]:
    """Calls per step: those of all steps, kernel loading and graph capture included, averaged."""
    steps, rest = divmod(sum(recorder.calls.values()), len(find_layers(model).full))
    assert not rest
    return {kind: count // steps for kind, count in recorder.calls.items()}


def _prompt(model: PreTrainedModel, work: Workload) -> Tensor:
    generator = torch.Generator(device=model.device).manual_seed(SEED)
    size = (work.batch, work.tokens)
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, size, generator=generator, device=model.device)


@torch.inference_mode()
def _first_token(
    model: PreTrainedModel, plans: Sequence[LayerPlan], work: Workload, ids: Tensor
) -> tuple[float, StaticSWAACache, Tensor]:
    synchronize()
    begin = time.perf_counter()
    cache = StaticSWAACache(
        model.config, plans, prompt_tokens=work.tokens, new_tokens=work.new_tokens
    )
    tokens = prefill(model, ids, cache, chunk=work.chunk).argmax(-1)
    tokens.tolist()  # only now does the user have the first token
    return time.perf_counter() - begin, cache, tokens


@torch.inference_mode()
def _answer(
    model: PreTrainedModel, cache: StaticSWAACache, tokens: Tensor, work: Workload
) -> dict[str, Any]:
    begin = time.perf_counter()
    step = DecodeStep(model, cache, tokens)
    synchronize()
    capture = time.perf_counter() - begin
    marks = Marks()
    marks.add()
    for _ in range(work.new_tokens - 1):
        step()
        marks.add()
    return {"per_token_s": _timings(marks.seconds()), "graph_s": capture}


def _timings(seconds: list[float]) -> dict[str, Any]:
    return {**percentiles(seconds)._asdict(), "timings": len(seconds)}


class _Memory:
    """Bytes on the GPU that were not in use before; all zero without a GPU."""

    def __init__(self) -> None:
        self._gpu = torch.cuda.is_available()
        self._before = 0
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()

    def after_prompt(self, cache: StaticSWAACache) -> dict[str, Any]:
        """Bytes of keys and values: as the cache counts them, and as the allocator does."""
        held = torch.cuda.memory_allocated() - self._before if self._gpu else None
        return {
            "kv_bytes": cache.kv_bytes(),
            "kv_peak_bytes": cache.peak_kv_bytes,
            "kv_allocated_bytes": held,
        }

    def peak(self) -> int | None:
        """The most that was allocated at once, weights included."""
        return torch.cuda.max_memory_allocated() if self._gpu else None
