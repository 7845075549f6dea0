"""Radix cache of adapted models: which keys other requests may reuse, and which are freed.

Keys of generated tokens under full decode, and of a dense tail's rows, are other keys than those of
the same tokens in the middle of a prompt. So tokens before the prompt's tail are published, and no
request reuses keys beyond its own.

In the sliding pool the sinks stay: the window that frees slots begins after them, they are a node
of their own in the tree, locked with the window, and a hit needs them. Under a dense tail the last
prompt rows see every key, so a prompt's keys are freed and published only when it is computed, and
a hit needs all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import TreeLock, zero_match_result
from sglang.srt.mem_cache.registry import create_unified_radix_cache
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from swaa.integrations.settings import Settings
from swaa.integrations.sglang import settings


def reusable(prompt: int, found: Settings | None) -> int | None:
    """How many tokens of a request have keys that depend on these tokens alone; None: all.

    Args:
        prompt: length of its prompt.
        found: what was asked for.
    """
    if found is None or found.publish_generated:
        return None
    config = found.config
    if not config.full_decode and not config.dense_tail:
        return None
    return max(0, prompt - config.dense_tail)


@dataclass
class SinkLock(TreeLock):
    """A lock on a node of the tree, and on nodes above it that hold sinks or a tail's keys."""

    beside: tuple[Any, ...] = ()


class SwaaRadixCache(UnifiedRadixCache):
    """SGLang's tree under the rules of this module; made by :func:`make`."""

    swaa: Settings | None = None
    swaa_sinks = 0
    """Tokens of whole pages that hold sinks in the sliding pool; 0 without such a pool."""
    swaa_tail = False
    """Whether rows of a dense tail see every key of the sliding pool."""
    swaa_decoding = False
    """Whether the request that is being published has computed its prompt."""

    # Which tokens are shared --------------------------------------------------------------------

    def swa_reprefill_tail_tokens(self, req: Any = None) -> int:
        """How many tokens before a request's end no hit may reach."""
        stock = super().swa_reprefill_tail_tokens(req)
        if req is None:
            return stock
        limit = reusable(len(req.origin_input_ids), self.swaa)
        if limit is None:
            return stock
        return max(stock, len(req.origin_input_ids) + len(req.output_ids) - limit)

    def checkpoint(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        """Publish a request's tokens before ``up_to``, as far as others may reuse them."""
        limit = reusable(len(req.origin_input_ids), self.swaa)
        self._keep_sinks(req)
        decoding = up_to >= len(req.origin_input_ids)
        if self.swaa_tail and not decoding and not req.finished():
            return  # what is published may be freed, and the tail will see all of it
        self.swaa_decoding = decoding
        try:
            super().checkpoint(req, up_to=up_to if limit is None else min(up_to, limit), **kwargs)
        finally:
            self.swaa_decoding = False

    # Sinks and dense tail in the sliding pool ---------------------------------------------------

    def evict_sliding_windows(self, req: Any, pre_len: int, *, eviction_interval: int = 1) -> None:
        """Free a request's slots between sinks and window; under a tail, once it is computed."""
        if self.swaa_tail and pre_len < len(req.origin_input_ids):
            return
        self._keep_sinks(req)
        super().evict_sliding_windows(req, pre_len, eviction_interval=eviction_interval)

    def match_prefix(self, params: Any) -> Any:
        """A hit whose sinks are still there; under a tail, whose keys all are."""
        result = super().match_prefix(params)
        found = result.device_prefix_len
        if self.disable or not found or not (self.swaa_sinks or self.swaa_tail):
            return result
        needed = found if self.swaa_tail else min(self.swaa_sinks, found)
        if self.tree_core.swa_tombstone_ranges(params.key, 0, needed):
            return zero_match_result(self, result, extra_key=params.key.extra_key)
        return result

    def insert(self, params: Any) -> Any:
        """Insert a request's tokens, the sinks first, so that they are a node of their own."""
        sinks = self.swaa_sinks
        known = params.prev_prefix_len >= sinks
        if self.disable or not sinks or known or len(params.key) <= sinks:
            return super().insert(params)
        head = dataclasses.replace(
            params,
            key=params.key[:sinks],
            value=params.value[:sinks],
            component_evicted_seqlens={},
        )
        super().insert(head)
        return super().insert(dataclasses.replace(params, prev_prefix_len=sinks))

    def lock(self, node_id: Any, skip_lock_components: Sequence[Any] = ()) -> Any:
        """Lock a node and its window, as SGLang does, and the nodes that hold the rest."""
        lock = super().lock(node_id, skip_lock_components)
        if lock is None or self.disable or not (self.swaa_sinks or self.swaa_tail):
            return lock
        path = self.tree_core.collect_path_info([node_id])[0]
        nodes = self._nodes_of_all(path) if self._needs_all() else self._node_of_sinks(path)
        beside = tuple(super(SwaaRadixCache, self).lock(node) for node in nodes if node != node_id)
        return SinkLock(lock.node, lock.receipt, lock.swa_released, beside)

    def unlock(self, lock: Any) -> None:
        """Undo :meth:`lock`."""
        for other in getattr(lock, "beside", ()):
            super().unlock(other)
        super().unlock(lock)

    def _keep_sinks(self, req: Any) -> None:
        req.kv.swa_evict_floor = max(req.kv.swa_evict_floor, self.swaa_sinks)

    def _needs_all(self) -> bool:
        return self.swaa_tail and not self.swaa_decoding

    def _node_of_sinks(self, path: Sequence[Any]) -> list[Any]:
        """The first node on a path that ends at or behind the sinks."""
        return [node.node_id for node in path if node.path_end >= self.swaa_sinks][:1]

    def _nodes_of_all(self, path: Sequence[Any]) -> list[Any]:
        """Nodes whose windows cover a path: each lock holds one window."""
        found, end = [], None
        for node in reversed(path):
            if end is None or node.path_end <= end:
                found.append(node.node_id)
                end = node.path_end - (self._sliding_window_size or 0)
        return found


def make(context: Any) -> Any:
    """The cache of an engine, from SGLang's ``TreeCacheBuildContext``."""
    cache: Any = create_unified_radix_cache(context, cache_class=SwaaRadixCache)
    found = cache.swaa = settings.find(context.model_config)
    if found is not None and context.is_hybrid_swa:
        cache.swaa_sinks = -(-found.config.sink_tokens // cache.page_size) * cache.page_size
        cache.swaa_tail = found.config.dense_tail > 0
        if cache.swaa_tail and not cache.disable:
            # A later prompt's tail needs every key of what it shares: they stay, until evicted.
            cache.components[ComponentType.SWA].free_out_of_window_slots = _free_nothing
    return cache


def _free_nothing(req: Any, pre_len: int, insert_params: Any) -> None:
    del req, pre_len, insert_params
