"""KV memory: which blocks a layer keeps, which enter the prefix cache, which prompts may reuse.

There are three kinds of layers, as specs by which vLLM's hybrid cache manager groups them:

* all keys stay (full layers, full decode): :class:`AllKeysSpec`;
* sinks and window stay, the gap is freed while the prompt is still computed:
  :class:`SinkWindowSpec`;
* the same with a dense tail, whose rows see every key: all keys stay until the last prompt row is
  computed, then the gap is freed: :class:`TailSpec`.

Keys of rows from ``prompt_length - dense_tail`` on have a phase of their own: a later prompt with
the same tokens would compute them differently. So blocks with such rows are not published, and no
prompt reuses a block that holds rows of its own tail. The original prompt of a request counts:
vLLM's streamed sessions (resumable requests) later turn generated tokens into prompt, but their
keys stay those of generated tokens.

A linear layer's state at a block's end holds all rows before it, so it is published under the same
limits: :class:`StateSpec`. Otherwise a state that took in generated rows could meet keys that
another request published for the same tokens.

Workers send specs to the engine core, so this module must be importable there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_utils import resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import (
    FullAttentionManager,
    MambaManager,
    SlidingWindowManager,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry, register_kv_cache_spec

from swaa.attention.pages import PAGE
from swaa.config import LayerPlan
from swaa.integrations.refusal import UnsupportedError

_hit_limit: ContextVar[int | None] = ContextVar("swaa_hit_limit", default=None)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the cache needs to know about a layer.

    Attributes:
        plan: of the layer.
        frees: whether blocks may be freed at all (vLLM's hybrid cache manager is on).
        prompt_only: publish only blocks wholly before the dense tail.
        dense_tail: of the model, prompt tokens.
        pages: whether the cache's pages also hold statistics of their keys: in every layer of the
            model, because all of vLLM's pages have one size.
        packed: whether they have several (:mod:`.packing`); then only layers that choose what they
            read hold statistics.
        model_dtype: of the model, where keys are stored in fp8; None: they are stored in it. Under
            fp8 full layers run on swaa's kernels, too: vLLM's own may round queries to fp8.
        draft: whether it is a layer of a draft. Its limits are those of the model that it drafts
            for, so that layers of both that keep all keys share a group.
    """

    plan: LayerPlan
    frees: bool
    prompt_only: bool
    dense_tail: int
    draft: bool = False
    pages: bool = False
    packed: bool = False
    model_dtype: torch.dtype | None = None

    @property
    def stock(self) -> bool:
        """Whether vLLM's own backend serves the layer."""
        return self.plan.full and self.model_dtype is None

    def spec(self, stock: Any) -> Any:
        """The layer's spec, made from the one that vLLM made for full attention."""
        common = {
            field.name: getattr(stock, field.name)
            for field in dataclasses.fields(stock)
            if field.init
        }
        if self.pages or (self.packed and self.plan.decode_keys):
            common["page_size_padded"] = padded_page_bytes(stock, self.model_dtype)
        limits = {"dense_tail": self.dense_tail, "prompt_only": self.prompt_only}
        plan = self.plan
        if not self.frees or plan.keeps_all_keys:
            return AllKeysSpec(**common, **limits, draft=self.draft)
        mask = {"sliding_window": plan.window, "sink_tokens": plan.sink_tokens}
        if plan.dense_tail:
            return TailSpec(**common | mask, **limits)
        for name in ("attention_chunk_size", "non_causal"):
            common.pop(name, None)  # fields that only full attention has
        return SinkWindowSpec(**common | mask, **limits)


def padded_page_bytes(spec: Any, dtype: torch.dtype | None = None) -> int:
    """Bytes of a block that also holds a mean and a deviation per 16 keys and head, of a type.

    Raises:
        UnsupportedError: for blocks that do not hold a whole number of our pages.
    """
    if spec.block_size % PAGE:
        raise UnsupportedError(
            f"swaa: decode_keys are read in pages of {PAGE}, and blocks hold {spec.block_size}:"
            f" give --block-size a multiple of {PAGE}"
        )
    statistics = 2 * spec.num_kv_heads * spec.head_size * (dtype or spec.dtype).itemsize
    return spec.unpadded_page_size_bytes + spec.block_size // PAGE * statistics


@contextmanager
def reusable_up_to(tokens: int | None) -> Iterator[None]:
    """Within the block, prefix-cache lookups stop at this many tokens; ``None``: no limit."""
    reset = _hit_limit.set(tokens)
    try:
        yield
    finally:
        _hit_limit.reset(reset)


def reuse_limit(managers: Any, request: Any) -> int | None:
    """How many tokens of a request's prompt may come from cached blocks, with these managers.

    A session that was preempted is computed again, entirely as the prompt that it has become.
    """
    specs = [getattr(manager, "kv_cache_spec", None) for manager in managers]
    ours = [spec for spec in specs if isinstance(spec, (AllKeysSpec, TailSpec, SinkWindowSpec))]
    if not any(spec.prompt_only or spec.dense_tail for spec in ours):
        return None
    first_prompt_length(request)
    return max(0, request.num_prompt_tokens - ours[0].dense_tail)


def first_prompt_length(request: Any) -> int:
    """Tokens of a request's original prompt, which vLLM lengthens in streamed sessions.

    The number is remembered at the first call, before any token is generated: both callers, lookup
    and publication, take part when a request is first scheduled.
    """
    return vars(request).setdefault("swaa_first_prompt_length", request.num_prompt_tokens)


def publication_limit(spec: Any, request: Any) -> int | None:
    """Tokens of a request whose keys others may reuse, by a spec of ours; None: all of them."""
    if not spec.prompt_only:
        return None
    return max(0, first_prompt_length(request) - spec.dense_tail)


class _OneKind:
    """Shared by the specs derived from full attention: a group holds layers of one kind only."""

    @classmethod
    def merge(cls, specs: list[Any]) -> Any:
        """One spec for layers of one kind."""
        same = all(type(spec) is type(specs[0]) and spec == specs[0] for spec in specs)
        assert same, "layers of one group must agree in all numbers"
        return specs[0]


@dataclass(frozen=True, kw_only=True)
class AllKeysSpec(_OneKind, FullAttentionSpec):
    """All keys stay; see :class:`Memory` for the fields.

    A draft's layers may share a group with others, so specs are equal whatever ``draft`` says.
    """

    dense_tail: int = 0
    prompt_only: bool = False
    draft: bool = dataclasses.field(default=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class TailSpec(_OneKind, FullAttentionSpec):
    """All keys stay until the prompt is computed, then sinks and ``sliding_window``."""

    sink_tokens: int = 0
    dense_tail: int = 0
    prompt_only: bool = False


@dataclass(frozen=True, kw_only=True)
class SinkWindowSpec(SlidingWindowSpec):
    """Sinks and ``sliding_window`` stay."""

    sink_tokens: int = 0
    dense_tail: int = 0
    prompt_only: bool = False

    @property
    def num_retained_tokens(self) -> int:
        """0: the worker must not null the block table's head, which holds the sinks."""
        return 0

    def max_admission_blocks_per_request(
        self, max_in_flight_tokens: int, max_model_len: int
    ) -> int:
        """Most blocks that a request holds at once."""
        window = super().max_admission_blocks_per_request(max_in_flight_tokens, max_model_len)
        return min(
            window + cdiv(self.sink_tokens, self.block_size), cdiv(max_model_len, self.block_size)
        )

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, Any]) -> bool:
        """Whether all layers keep the same keys, whatever their head size."""
        numbers = (self.sliding_window, self.sink_tokens, self.dense_tail, self.prompt_only)
        return all(
            isinstance(spec, SinkWindowSpec)
            and numbers
            == (spec.sliding_window, spec.sink_tokens, spec.dense_tail, spec.prompt_only)
            for spec in kv_cache_specs.values()
        )


@dataclass(frozen=True, kw_only=True)
class StateSpec(MambaSpec):
    """States of linear layers, see :class:`Memory` for the fields."""

    dense_tail: int = 0
    prompt_only: bool = False


def bound_states(specs: Mapping[str, Any], *, dense_tail: int) -> dict[str, Any]:
    """Cache specs by layer, with states that are published within the prompt only.

    Args:
        specs: of all layers.
        dense_tail: of the model, prompt tokens.

    Raises:
        UnsupportedError: for states that vLLM also publishes from within a block.
    """
    return {
        name: _bound_state(spec, dense_tail) if isinstance(spec, MambaSpec) else spec
        for name, spec in specs.items()
    }


def _bound_state(spec: Any, dense_tail: int) -> StateSpec:
    if getattr(spec, "num_prefill_checkpoint_blocks", 0):
        raise UnsupportedError(
            "swaa: states that vLLM publishes from within a block were not tried with full decode"
            " or a dense tail; serve with --no-enable-prefix-caching"
        )
    common = {
        field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.init
    }
    return StateSpec(**common | {"dense_tail": dense_tail, "prompt_only": True})


def decode_blocks(spec: Any, tokens: int) -> int:
    """Most blocks of a group that a request of so many tokens holds while it generates."""
    if isinstance(spec, MambaSpec):
        return 2 if spec.mamba_cache_mode == "align" else 1
    blocks = cdiv(tokens, spec.block_size)
    if isinstance(spec, (TailSpec, SinkWindowSpec)):
        window = (spec.sliding_window + spec.block_size - 2) // spec.block_size + 1
        return min(blocks, cdiv(spec.sink_tokens, spec.block_size) + window)
    return blocks


class _PromptBound:
    """Shared by the managers: publication and reuse end before the dense tail and the answer."""

    kv_cache_spec: Any

    def __init__(self, kv_cache_spec: Any, *args: Any, **kwargs: Any) -> None:
        _require_lookup_hook()
        super().__init__(kv_cache_spec, *args, **kwargs)  # pyright: ignore

    def cache_blocks(self, request: Any, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """Publish only blocks wholly before the dense tail."""
        limit = publication_limit(self.kv_cache_spec, request)
        num_tokens = num_tokens if limit is None else min(num_tokens, limit)
        super().cache_blocks(request, num_tokens, *args, **kwargs)  # pyright: ignore

    @classmethod
    def find_longest_cache_hit(
        cls, block_hashes: Any, max_length: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Cached blocks for a prompt, up to the limit of the lookup."""
        limit = _hit_limit.get()
        max_length = max_length if limit is None else min(max_length, limit)
        return super().find_longest_cache_hit(  # pyright: ignore
            block_hashes, max_length, *args, **kwargs
        )


class AllKeysManager(_PromptBound, FullAttentionManager):
    """Frees nothing before the request ends."""


class TailManager(_PromptBound, FullAttentionManager):
    """Frees the gap between sinks and window once every prompt row is computed."""

    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,
    ) -> None:
        """Free what no later row sees."""
        if num_prompt_tokens is None or processed_computed_tokens < num_prompt_tokens:
            return
        spec = self.kv_cache_spec
        left = processed_computed_tokens - spec.sliding_window + 1  # the next row's left
        self._remove_blocks_in_range(
            request_id, cdiv(spec.sink_tokens, self.block_size), left // self.block_size
        )


class SinkWindowManager(_PromptBound, SlidingWindowManager):
    """Frees the gap between sinks and window while the prompt is computed."""

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """0: vLLM calls this to trim a request's head, and the head holds the sinks."""
        return 0

    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,
    ) -> None:
        """Free what no later row sees."""
        left = super().get_num_skipped_tokens(processed_computed_tokens)
        self._remove_blocks_in_range(
            request_id,
            cdiv(self.kv_cache_spec.sink_tokens, self.block_size),
            left // self.block_size,
        )

    @classmethod
    def find_longest_cache_hit(
        cls, block_hashes: Any, max_length: int, kv_cache_group_ids: Any, **kwargs: Any
    ) -> Any:
        """Like vLLM's, but a hit also needs the blocks of the sinks."""
        blocks, length = super().find_longest_cache_hit(
            block_hashes, max_length, kv_cache_group_ids=kv_cache_group_ids, **kwargs
        )
        spec, pool = kwargs["kv_cache_spec"], kwargs["block_pool"]
        hashes = resolve_block_hashes(
            block_hashes,
            pool.hash_block_size,
            spec.block_size,
            supports_fine_grained_hash_lookup=cls.supports_fine_grained_hash_lookup,
            alignment_tokens=kwargs["alignment_tokens"],
        )
        for index in range(min(cdiv(spec.sink_tokens, spec.block_size), len(blocks[0]))):
            cached = pool.get_cached_block(hashes[index], kv_cache_group_ids)
            if not cached:
                return tuple([] for _ in kv_cache_group_ids), 0
            for group, block in zip(blocks, cached, strict=True):
                group[index] = block
        return blocks, length

    @classmethod
    def reachable_block_mask(
        cls, start_block: int, end_block: int, *args: Any, **kwargs: Any
    ) -> list[bool] | None:
        """Which blocks are worth publishing: those that vLLM names, and always the sinks'."""
        mask = super().reachable_block_mask(start_block, end_block, *args, **kwargs)
        if mask is None:
            return None
        spec = kwargs["kv_cache_spec"]
        for index in range(start_block, min(end_block, cdiv(spec.sink_tokens, spec.block_size))):
            mask[index - start_block] = True
        return mask


class StateManager(_PromptBound, MambaManager):
    """Publishes states at ends of blocks, within the prompt."""

    def _cache_partial_tail_block(self, *args: Any, **kwargs: Any) -> None:
        """None: with lookups by whole blocks there is nothing to publish within one."""
        return


def _require_lookup_hook() -> None:
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    if not hasattr(KVCacheManager.get_computed_blocks, "swaa_original"):
        raise RuntimeError(
            "swaa is not active in vLLM's engine core: its plugin was not loaded there (check"
            " VLLM_PLUGINS), or something replaced its hook"
        )


def register_specs() -> None:
    """Make the specs known to vLLM; a second call in a process does nothing."""
    # vLLM registers its own specs only as long as no spec is registered.
    KVCacheSpecRegistry._ensure_registered()
    for spec, manager in (
        (AllKeysSpec, AllKeysManager),
        (TailSpec, TailManager),
        (SinkWindowSpec, SinkWindowManager),
        (StateSpec, StateManager),
    ):
        register_kv_cache_spec(manager_class=manager, uniform_type_base_spec=spec)(spec)


register_specs()
