"""KV memory: a second, smaller pool for layers that slide in decoding.

SGLang has two pools for models that slide by nature. A model of which some layers slide in
decoding is declared to be one: those layers go to the sliding pool, whose slots are freed behind
each window (``cache.py`` keeps the sinks). A recipe with full decode in every layer keeps all keys,
and one pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sglang.srt.environ import envs
from sglang.srt.model_executor.pool_configurator import (
    HybridSWAPoolConfigurator,
    MemoryPoolConfig,
)
from sglang.srt.runtime_context import get_schedule

from swaa.config import LayerPlan
from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.sglang import settings

LEAST_REQUESTS = 16
"""Requests for which the sliding pool has room, where the full pool has no room for more."""


def layers_by_pool(plans: Sequence[LayerPlan]) -> list[int] | None:
    """For each layer 1 where it belongs to the sliding pool, else 0; None: one pool serves all.

    SGLang needs a layer in the full pool: the first one is there even if it slides.

    >>> layers_by_pool([LayerPlan(window=8), LayerPlan(window=8), LayerPlan(window=None)])
    [1, 1, 0]
    >>> layers_by_pool([LayerPlan(window=8), LayerPlan(window=8)])
    [0, 1]
    """
    pattern = [int(not plan.keeps_all_keys) for plan in plans]
    if all(pattern):
        pattern[0] = 0
    return pattern if any(pattern) else None


def declare(model_config: Any) -> None:
    """Before SGLang derives the pools of a model: tell it which layers slide in decoding."""
    found = settings.find(model_config)
    if found is None:
        return
    pattern = layers_by_pool(settings.plans_of(model_config))
    if pattern is None:
        return
    text = model_config.hf_text_config
    text.is_hybrid_swa = True
    text.hybrid_layer_pattern = pattern
    # Keys that a request keeps: SGLang admits requests, and frees slots, by this number.
    model_config.sliding_window_size = kept(found.config)


def kept(config: Any) -> int:
    """Keys that a layer of the sliding pool keeps of a request that decodes."""
    return config.window + config.sink_tokens


class Demand(NamedTuple):
    """What the sliding pool must hold, in tokens.

    Attributes:
        request: of one request that decodes, freed slots that wait for their page included.
        prompt: of the one prompt that is being computed.
    """

    request: int
    prompt: int


def demand(*, keeps: int, tail: bool, longest: int, chunk: int, page: int, interval: int) -> Demand:
    """Tokens of the sliding pool for a request, and beside all requests for a prompt.

    >>> demand(keeps=28, tail=False, longest=1000, chunk=64, page=1, interval=128)
    Demand(request=158, prompt=129)
    >>> demand(keeps=28, tail=True, longest=1000, chunk=64, page=1, interval=128)
    Demand(request=158, prompt=1129)

    Args:
        keeps: keys of a request that decodes: sinks and window.
        tail: whether the last rows of a prompt see everything, so that all its keys are kept.
        longest: tokens of the longest request.
        chunk: most tokens of a forward pass.
        page: tokens of a page.
        interval: tokens after which slots are freed.
    """
    request = min(keeps + interval, longest) + 2 * page
    prompt = 2 * chunk + page  # one is computed while the next is prepared
    return Demand(request, prompt + longest if tail else prompt)


class PoolConfigurator(HybridSWAPoolConfigurator):
    """Sizes both pools so that no prompt stalls, and the full pool holds as much as it can.

    Where ``--swa-full-tokens-ratio`` is given, it sizes the sliding pool, but a dense tail still
    gets room for one longest prompt. Otherwise the sliding pool has room for
    ``--max-running-requests`` if that is given, else for as many requests of the longest context
    as the full pool holds, and at least :data:`LEAST_REQUESTS`.
    """

    def __init__(self, kvc: Any) -> None:
        super().__init__(kvc)
        if not self._full_layers_num:
            raise UnsupportedError(
                "swaa: SGLang needs a layer that keeps all keys on each pipeline rank; name one in"
                " full_layers, or serve with --disable-hybrid-swa-memory"
            )
        config = settings.find(kvc.model_config)
        assert config is not None
        schedule = get_schedule()
        self._longest = kvc.model_config.context_len
        chunk = schedule.chunked_prefill_size
        chunk = chunk if chunk and chunk > 0 else self._longest
        self._demand = demand(
            keeps=kept(config.config),
            tail=config.config.dense_tail > 0,
            longest=self._longest,
            chunk=min(chunk, self._longest),
            page=kvc.page_size,
            interval=max(1, envs.SGLANG_SWA_EVICTION_INTERVAL.get()),
        )
        given = schedule.max_running_requests
        self._requests = None if given is None else max(1, given // kvc.attn_dp_size)
        self._ratio = (
            schedule.swa_full_tokens_ratio
            if schedule._swa_full_tokens_ratio_explicitly_set
            else None
        )

    def sliding_tokens(self, full_tokens: int, page: int) -> int:
        """Tokens of the sliding pool beside a full pool of so many: never more than those."""
        requests = self._requests or max(LEAST_REQUESTS, full_tokens // self._longest)
        wanted = requests * self._demand.request + self._demand.prompt
        if self._ratio is not None:
            wanted = max(int(full_tokens * self._ratio), self._least(full_tokens))
        return min(-(-wanted // page) * page, full_tokens)

    def _least(self, full_tokens: int) -> int:
        """One longest prompt that fits the full pool, and a request that decodes beside it."""
        return min(full_tokens, self._demand.prompt + self._demand.request)

    def calculate_pool_sizes(self, available_bytes: int, page_size: int) -> MemoryPoolConfig:
        """The largest full pool that fits beside its sliding pool."""
        least, most = 0, int(available_bytes // self._full_cell_bytes()) // page_size
        while least < most:
            pages = (least + most + 1) // 2
            full = pages * page_size
            sliding = self.sliding_tokens(full, page_size)
            used = full * self._full_cell_bytes() + sliding * self._swa_cell_bytes()
            least, most = (pages, most) if used <= available_bytes else (least, pages - 1)
        return self._sized(least * page_size, page_size)

    def calculate_pool_sizes_from_max_tokens(
        self, max_total_num_tokens: int, page_size: int
    ) -> MemoryPoolConfig:
        """Both pools, the full one of so many tokens."""
        return self._sized(max_total_num_tokens // page_size * page_size, page_size)

    def _sized(self, full_tokens: int, page: int) -> MemoryPoolConfig:
        sliding = self.sliding_tokens(full_tokens, page)
        self.validate_swa_pool_size(sliding, self._sliding_window_size, page)
        return self._make_pool_config(full_tokens, sliding)
