"""Groups of the cache where layers have unlike numbers of KV heads: equal bytes, not equal pages.

A block of vLLM's cache belongs to one group of layers at a time, and every group has blocks of one
size. In vLLM's usual layouts each layer has a region of its own, so that all pages need one size.
Where blocks are outermost, a block holds the pages of all layers of its group one after another,
and these may have any sizes: only their sum counts. So the parts of layers are dealt out to groups
of nearly equal sums, whatever KV heads they have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm.v1.kv_cache_interface import KVCacheGroupSpec, UniformTypeKVCacheSpecs
from vllm.v1.kv_cache_layout import KVCacheLayout

from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.vllm.drafts import is_drafts
from swaa.integrations.vllm.kv_cache import decode_blocks

MOST_GROUPS = 12
"""Of a cache, unless it has more kinds of layers: each group costs time in every step."""
NEAR = 1.02
"""How many times the fewest bytes may be taken for fewer groups."""

_LAYOUTS = (KVCacheLayout.BLNHC, KVCacheLayout.BLHNC)


def packed_layouts(stock: type[Any]) -> tuple[KVCacheLayout, ...]:
    """Layouts with blocks outermost that a backend reads, the one that it prefers first.

    Raises:
        UnsupportedError: when it reads none.
    """
    known = stock.supported_kv_cache_layouts()
    if stock.get_name() == "CPU_ATTN":
        known = (KVCacheLayout.BLHNC,)  # it takes any distance between blocks
    found = _LAYOUTS if known is None else tuple(each for each in known if each in _LAYOUTS)
    if not found:
        raise UnsupportedError(
            f"swaa: full_decode names KV heads, so that blocks hold pages of unlike sizes, which"
            f" {stock.get_name()} does not read; choose another --attention-backend"
        )
    return found


@dataclass(frozen=True)
class _Kind:
    """Layers that keep the same keys.

    Attributes:
        items: names that must share a group, with the bytes of their pages; the largest first.
        pages: blocks that a request of the longest context takes in each group: at most, plus while
            it generates, so that both count.
    """

    items: tuple[tuple[tuple[str, ...], int], ...]
    pages: int

    @property
    def bytes(self) -> int:
        """Of all pages."""
        return sum(size for _, size in self.items)


def pack(specs: Mapping[str, Any], vllm_config: Any) -> list[KVCacheGroupSpec]:
    """The groups of a cache in which pages have several sizes.

    Args:
        specs: cache specs of all layers and parts by name, in vLLM's order.
        vllm_config: of the engine.

    Returns:
        Groups of layers that keep the same keys; that of a draft's layers is the first.
    """
    kinds = _kinds(specs, vllm_config)
    made = [_dealt(kinds, width) for width in _widths(kinds)]
    fewest = min(len(groups) for _, groups in made)
    made = [pair for pair in made if len(pair[1]) <= max(fewest, MOST_GROUPS)]
    least = min(cost for cost, _ in made)
    near = [pair for pair in made if pair[0] <= NEAR * least]
    _, chosen = min(near, key=lambda pair: (len(pair[1]), pair[0]))
    order = list(specs)
    groups = [_group(specs, sorted(names, key=order.index)) for names in chosen]
    return sorted(groups, key=lambda group: not any(is_drafts(specs[n]) for n in group.layer_names))


def _kinds(specs: Mapping[str, Any], vllm_config: Any) -> list[_Kind]:
    by_kind: dict[tuple[Any, ...], list[str]] = {}
    for name, spec in specs.items():
        by_kind.setdefault(_kept(spec), []).append(name)
    return [_kind(names, specs, vllm_config) for names in by_kind.values()]


def _kind(names: list[str], specs: Mapping[str, Any], vllm_config: Any) -> _Kind:
    drafts = tuple(name for name in names if is_drafts(specs[name]))
    together = [drafts] if drafts else []
    together += [(name,) for name in names if name not in drafts]
    items = [(each, sum(specs[name].page_size_bytes for name in each)) for each in together]
    spec, longest = specs[names[0]], vllm_config.model_config.max_model_len
    most = -(-spec.max_memory_usage_bytes(vllm_config) // spec.page_size_bytes)
    return _Kind(
        items=tuple(sorted(items, key=lambda item: -item[1])),
        pages=most + decode_blocks(spec, longest),
    )


def _kept(spec: Any) -> tuple[Any, ...]:
    numbers = ("block_size", "sliding_window", "sink_tokens", "dense_tail", "prompt_only")
    return type(spec), *(getattr(spec, name, None) for name in numbers)


def _widths(kinds: list[_Kind]) -> Iterator[int]:
    """Bytes of a block to try: those by which one kind of layers fills its groups."""
    least = max(size for kind in kinds for _, size in kind.items)
    for kind in kinds:
        for count in range(1, MOST_GROUPS + 1):
            yield max(least, -(-kind.bytes // count))


def _dealt(kinds: list[_Kind], width: int) -> tuple[int, list[list[str]]]:
    """Names in groups of about so many bytes, and what requests of the longest context take."""
    groups: list[tuple[list[str], int]] = []
    pages = 0
    for kind in kinds:
        own = _deal(kind, -(-kind.bytes // width))
        pages += kind.pages * len(own)
        groups += own
    return pages * max(size for _, size in groups), [names for names, _ in groups]


def _deal(kind: _Kind, count: int) -> list[tuple[list[str], int]]:
    """Names in so many groups of nearly equal bytes, with those bytes."""
    groups: list[tuple[list[str], int]] = [([], 0)] * count
    for names, size in kind.items:
        n = min(range(count), key=lambda n: groups[n][1])
        groups[n] = [*groups[n][0], *names], groups[n][1] + size
    return groups


def _group(specs: Mapping[str, Any], names: list[str]) -> KVCacheGroupSpec:
    own = {name: specs[name] for name in names}
    spec = UniformTypeKVCacheSpecs(
        block_size=next(iter(own.values())).block_size, kv_cache_specs=own
    )
    return KVCacheGroupSpec(layer_names=names, kv_cache_spec=spec)
