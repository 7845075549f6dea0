"""Which KV heads: lists by layer, such as ``{"14": [0], "16": [0, 1]}``."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swaa.layers import shown

_ITEM = re.compile(r"(\d{1,9}):(\d{1,9}(?:\+\d{1,9})*)")


@dataclass(frozen=True)
class HeadSelection:
    """KV heads of some layers.

    >>> str(HeadSelection.parse({"16": [1, 0], "14": [0]}, name="full_decode"))
    '14:0,16:0+1'

    Attributes:
        layers: pairs of a layer and its KV heads, each sorted and without repetitions; a layer
            without any is not there.
    """

    layers: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def parse(cls, value: Mapping[object, object], *, name: str) -> HeadSelection:
        """Read a mapping from layers (numbers, or their digits as in JSON) to KV heads.

        Args:
            value: such as ``{"14": [0], "16": [0, 1]}``.
            name: the option's name, for messages.

        Raises:
            TypeError: for anything but whole numbers.
            ValueError: for a negative number, or a layer that is named twice.
        """
        found: dict[int, tuple[int, ...]] = {}
        for key, heads in value.items():
            layer = int(key) if isinstance(key, str) and re.fullmatch(r"\d{1,9}", key) else key
            if isinstance(layer, bool) or not isinstance(layer, int):
                raise TypeError(f'{name} names layer {shown(key)}; expected a number such as "14"')
            if isinstance(heads, str) or not isinstance(heads, Sequence):
                raise TypeError(
                    f"{name} gives layer {layer} {shown(heads)}; expected a list of KV heads such"
                    " as [0, 1]"
                )
            if layer in found:
                raise ValueError(f"{name} names layer {layer} twice")
            found[layer] = tuple(sorted({_head(head, layer, name) for head in heads}))
            if layer < 0:
                raise ValueError(f"{name} names layer {layer}; layer indices start at 0")
        return cls.of(found)

    @classmethod
    def of(cls, heads: Mapping[int, Sequence[int]]) -> HeadSelection:
        """The selection of a mapping that needs no check; layers without heads are left out."""
        return cls(tuple((i, tuple(sorted(kept))) for i, kept in sorted(heads.items()) if kept))

    @classmethod
    def from_words(cls, text: str, *, name: str) -> HeadSelection | None:
        """Read a flag's form, ``14:0,16:0+1``; None for a text of another form.

        Args:
            text: layers, each with its KV heads.
            name: the flag, for messages.

        Raises:
            ValueError: for a layer that is named twice.
        """
        items = [_ITEM.fullmatch(item.strip()) for item in text.split(",")]
        pairs = [(int(item[1]), item[2].split("+")) for item in items if item]
        if len(pairs) < len(items):
            return None
        if len({layer for layer, _ in pairs}) < len(pairs):
            raise ValueError(f"{name} {text}: a layer is named twice; write 16:0+1")
        return cls.of({layer: sorted({int(head) for head in heads}) for layer, heads in pairs})

    def __bool__(self) -> bool:
        """Whether any head is named."""
        return bool(self.layers)

    def __str__(self) -> str:
        """In the form of a flag: ``14:0,16:0+1``."""
        return ",".join(f"{layer}:{'+'.join(map(str, heads))}" for layer, heads in self.layers)

    def to_json(self) -> dict[str, list[int]]:
        """As in a JSON file: ``{"14": [0], "16": [0, 1]}``."""
        return {str(layer): list(heads) for layer, heads in self.layers}

    def within(self, num_layers: int, kv_heads: int | None = None) -> HeadSelection:
        """The same without layers and heads that a model does not have.

        Args:
            num_layers: of the model.
            kv_heads: of each of its layers; None: heads are left alone.
        """
        return HeadSelection.of(
            {
                layer: [head for head in heads if kv_heads is None or head < kv_heads]
                for layer, heads in self.layers
                if layer < num_layers
            }
        )

    def beyond(self, num_layers: int, kv_heads: int) -> HeadSelection:
        """What :meth:`within` leaves out."""
        kept = dict(self.within(num_layers, kv_heads).layers)
        return HeadSelection.of(
            {layer: sorted({*heads} - {*kept.get(layer, ())}) for layer, heads in self.layers}
        )

    def resolve(self, kv_heads: Sequence[int], *, name: str) -> dict[int, tuple[int, ...]]:
        """The KV heads of each named layer of a model.

        Args:
            kv_heads: KV heads of each of the model's layers; 0: the layer has none.
            name: the option's name, for messages.

        Returns:
            By layer; layers and heads that the model does not have are dropped.

        Warns:
            UserWarning: naming what was dropped, in one warning.
        """
        beyond = [str(layer) for layer, _ in self.layers if layer >= len(kv_heads)]
        found = {layer: heads for layer, heads in self.layers if layer < len(kv_heads)}
        kept = {
            layer: tuple(head for head in heads if head < kv_heads[layer])
            for layer, heads in found.items()
        }
        lost = {
            layer: tuple(head for head in heads if head >= kv_heads[layer] > 0)
            for layer, heads in found.items()
        }
        said = [f"layers {', '.join(beyond)}"] if beyond else []
        said += [f"KV heads {HeadSelection.of(lost)}"] if any(lost.values()) else []
        if said:
            warnings.warn(
                f"{name}: {' and '.join(said)} dropped, the model has {len(kv_heads)} layers of"
                f" {max(kv_heads)} KV heads, counted from 0",
                stacklevel=4,
            )
        return {layer: heads for layer, heads in kept.items() if heads}


def _head(head: object, layer: int, name: str) -> int:
    if isinstance(head, bool) or not isinstance(head, int):
        raise TypeError(
            f"{name} gives layer {layer} the KV head {shown(head)}; expected whole numbers"
        )
    if head < 0:
        raise ValueError(f"{name} gives layer {layer} the KV head {head}; heads start at 0")
    return head
