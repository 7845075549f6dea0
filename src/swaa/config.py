"""The knobs of sliding window attention adaptation, and what they mean for each layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from swaa.heads import HeadSelection
from swaa.layers import LayerSelection, parse_layers, resolve_layers, shown

CONFIG_VERSION = 1
"""Version of the JSON format; a file of a newer version is refused."""

BY_CONTENT = ("selected_layers", "selected_keys", "decode_keys")
"""Knobs that JSON leaves out where they are not used, so that older files keep their meaning."""

FULL = ("full_decode", "full_layers", "selected_layers")
"""Knobs by which generated rows see every key."""

_INSTEAD = 'True, False, KV heads by layer such as {"14": [0]}, '

MOST_TOKENS = 2**30
"""Largest window, number of sinks and dense tail: a position plus it must fit an int32."""

AUTHORS_KEYS = {
    "sliding_window_size": "window",
    "keep_first": "sink_tokens",
    "non_sliding_layers": "full_layers",
    "force_fa_decode": "full_decode",
}
"""Names that the paper's own code uses (arXiv 2512.10411)."""


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What one layer does: the numbers of the mask, with every option resolved.

    Attributes:
        window: keys a sliding row sees, itself included; ``None``: the layer stays full.
        sink_tokens: first real tokens that every row sees.
        full_decode: rows after the prompt are full.
        dense_tail: how many of the last prompt rows are full.
        selected_keys: older keys that prompt rows see by content, in addition to sinks and window;
            0: they slide. A layer with selected rows has full decode.
        decode_keys: most keys that a full generated row reads in addition to sinks and window,
            chosen by content; 0: it reads everything.
        decode_window: the window of those rows in a layer without one; elsewhere it is ``window``.
        decode_heads: KV heads whose generated rows are full while those of the others slide; such
            a layer is computed and stored in its :meth:`parts`. Empty: all heads do the same.
    """

    window: int | None
    sink_tokens: int = 0
    full_decode: bool = False
    dense_tail: int = 0
    selected_keys: int = 0
    decode_keys: int = 0
    decode_window: int | None = None
    decode_heads: tuple[int, ...] = ()

    @property
    def full(self) -> bool:
        """Whether the layer was left as it is."""
        return self.window is None

    @property
    def keeps_all_keys(self) -> bool:
        """Whether rows after the prompt need every key, so that none may be freed."""
        return self.full or self.full_decode

    @property
    def needs_prompt_length(self) -> bool:
        """Whether the mask depends on where the prompt ends."""
        if self.decode_keys or self.decode_heads:
            return True
        return not self.full and (self.full_decode or self.dense_tail > 0)

    def parts(self, kv_heads: int) -> tuple[HeadPart, ...]:
        """The layer's KV heads, in groups that do the same.

        >>> [part.heads for part in LayerPlan(window=8, decode_heads=(1,)).parts(3)]
        [(1,), (0, 2)]

        Args:
            kv_heads: of the layer.

        Returns:
            One part, or two: first the heads whose generated rows are full, then those that slide.
        """
        groups = zip(self.part_plans(), self.part_heads(kv_heads), strict=True)
        return tuple(HeadPart(plan, heads) for plan, heads in groups)

    def part_heads(self, kv_heads: int) -> tuple[tuple[int, ...], ...]:
        """The KV heads of :meth:`parts`, in order."""
        if not self.decode_heads:
            return (tuple(range(kv_heads)),)
        others = tuple(head for head in range(kv_heads) if head not in self.decode_heads)
        return self.decode_heads, others

    def part_plans(self) -> tuple[LayerPlan, ...]:
        """The plans of :meth:`parts`, in order."""
        if not self.decode_heads:
            return (self,)
        return (
            replace(self, decode_heads=(), full_decode=True),
            replace(self, decode_heads=(), decode_keys=0),
        )

    def full_rows(self, prompt_length: int) -> tuple[int | None, int | None]:
        """``(full_from, full_until)`` of the mask for a prompt that ends at ``prompt_length``.

        >>> LayerPlan(window=8, full_decode=True, dense_tail=2).full_rows(100)
        (98, None)
        """
        assert not self.decode_heads, "rows differ between heads: ask each of parts()"
        if not self.needs_prompt_length:
            return None, None
        if self.full:
            return 0, None  # rows after the prompt choose among all keys, see decode_keys
        first = max(0, prompt_length - self.dense_tail)
        return first, None if self.full_decode else prompt_length


class HeadPart(NamedTuple):
    """KV heads of one layer that do the same.

    Attributes:
        plan: what they do.
        heads: their numbers, from 0, in order.
    """

    plan: LayerPlan
    heads: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SWAAConfig:
    """How a full-attention model is made to slide.

    >>> SWAAConfig(window=2048, sink_tokens=64, full_layers="odd", full_decode=True).describe()
    'window 2048, 64 sinks, full layers odd, full decode'

    Attributes:
        window: keys a sliding row sees, itself included (tokens); ``None`` leaves every layer full.
        sink_tokens: first real tokens of each sequence, always visible.
        full_layers: layers left as they were, by index or by rule.
        full_decode: whether generated tokens see every key: in every layer, in none, in the layers
            named by index or by rule, or in some KV heads of layers, as a mapping such as
            ``{"14": [0], "16": [0, 1]}``. The prompt still slides.
        dense_tail: the last N prompt tokens see every key, in every layer.
        selected_layers: layers, by index or by rule, whose prompt rows also see the
            ``selected_keys`` older keys that fit them best. Their generated rows see every key. A
            layer that ``full_layers`` also names stays full.
        selected_keys: how many older keys those rows see: a multiple of 64.
        decode_keys: limits what a generated token reads where it sees every key (by
            ``full_decode``, and in full and selected layers): sinks, window, and at most so many
            other keys. They are those that fit it best, chosen anew for each token in pages of 16;
            none is freed. A multiple of 16; 0: it reads all keys.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a value out of range, an unknown rule, or a knob that would do nothing
            because there is no window.
    """

    window: int | None
    sink_tokens: int = 0
    full_layers: LayerSelection = ()
    full_decode: bool | LayerSelection | HeadSelection = False
    dense_tail: int = 0
    selected_layers: LayerSelection = ()
    selected_keys: int = 0
    decode_keys: int = 0

    def __post_init__(self) -> None:
        if self.window is not None:
            _check_count("window", self.window, 1, "keys; None leaves every layer full")
        _check_count("sink_tokens", self.sink_tokens, 0, "tokens")
        _check_count("dense_tail", self.dense_tail, 0, "prompt tokens")
        object.__setattr__(self, "full_layers", parse_layers(self.full_layers, name="full_layers"))
        if isinstance(self.full_decode, Mapping):
            heads = HeadSelection.parse(self.full_decode, name="full_decode")
            object.__setattr__(self, "full_decode", heads or False)
        elif not isinstance(self.full_decode, bool | HeadSelection):
            layers = parse_layers(self.full_decode, name="full_decode", instead=_INSTEAD)
            object.__setattr__(self, "full_decode", layers or False)
        selected = parse_layers(self.selected_layers, name="selected_layers")
        object.__setattr__(self, "selected_layers", selected)
        _check_selected(selected, self.selected_keys)
        self._check_decode_keys()
        if self.window is None:
            self._refuse_idle_knobs()

    def _check_decode_keys(self) -> None:
        _check_count("decode_keys", self.decode_keys, 0, "keys; 0 reads all of them")
        if not self.decode_keys:
            return
        from swaa.attention.pages import PAGE  # imports PyTorch

        if self.decode_keys % PAGE:
            raise ValueError(
                f"decode_keys is {self.decode_keys}; keys are read in pages of {PAGE}: give a"
                " multiple"
            )
        if self.window and not any(getattr(self, name) for name in FULL):
            raise ValueError(
                f"decode_keys is {self.decode_keys}, but no generated token sees every key: give"
                " full_decode, full_layers or selected_layers too"
            )

    def _refuse_idle_knobs(self) -> None:
        idle = [field.name for field in fields(self)[1:] if getattr(self, field.name)]
        if idle:
            raise ValueError(
                f"{', '.join(idle)} would do nothing: there is no window, every layer is full;"
                " give 'window' too, or leave the others out for full attention"
            )

    def layers(
        self, num_layers: int, kv_heads: Sequence[int] | None = None
    ) -> tuple[LayerPlan, ...]:
        """The plan of each of a model's layers: the only place where options become numbers.

        Args:
            num_layers: decoder layers of the model.
            kv_heads: KV heads of each of them; only needed where ``full_decode`` names heads.

        Raises:
            ValueError: when ``kv_heads`` is needed and missing.

        Warns:
            UserWarning: naming listed layers and heads that the model does not have.
        """
        full = set(resolve_layers(self.full_layers, num_layers, name="full_layers"))
        decode, heads = self._decode(num_layers, kv_heads)
        selected = set(resolve_layers(self.selected_layers, num_layers, name="selected_layers"))
        return tuple(
            self._full_plan()
            if self.window is None or index in full
            else LayerPlan(
                window=self.window,
                sink_tokens=self.sink_tokens,
                full_decode=index in decode or index in selected,
                dense_tail=self.dense_tail,
                selected_keys=self.selected_keys if index in selected else 0,
                decode_keys=self.decode_keys
                if index in decode or index in selected or index in heads
                else 0,
                decode_heads=() if index in selected else heads.get(index, ()),
            )
            for index in range(num_layers)
        )

    def _decode(
        self, num_layers: int, kv_heads: Sequence[int] | None
    ) -> tuple[set[int], dict[int, tuple[int, ...]]]:
        """Layers with full decode in all KV heads, and the heads of those with it in some."""
        if isinstance(self.full_decode, bool):
            return (set(range(num_layers)) if self.full_decode else set()), {}
        if not isinstance(self.full_decode, HeadSelection):
            return set(resolve_layers(self.full_decode, num_layers, name="full_decode")), {}
        if kv_heads is None:
            raise ValueError(
                "full_decode names KV heads, which cannot be resolved here: nobody said how many"
                " each layer has"
            )
        assert len(kv_heads) == num_layers
        found = self.full_decode.resolve(kv_heads, name="full_decode")
        whole = {layer for layer, heads in found.items() if len(heads) == kv_heads[layer]}
        return whole, {layer: heads for layer, heads in found.items() if layer not in whole}

    def _full_plan(self) -> LayerPlan:
        if not self.decode_keys:
            return LayerPlan(window=None)
        return LayerPlan(
            window=None,
            sink_tokens=self.sink_tokens,
            decode_keys=self.decode_keys,
            decode_window=self.window,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values with the format's ``version``; unused :data:`BY_CONTENT` are left out."""
        values: dict[str, Any] = {"version": CONFIG_VERSION}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in BY_CONTENT and not value:
                continue
            if isinstance(value, HeadSelection):
                values[field.name] = value.to_json()
            else:
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SWAAConfig:
        """Read :meth:`to_dict`'s form, or the keys of the paper's own code.

        Raises:
            TypeError: when ``values`` is not a mapping.
            ValueError: for unknown keys, a newer ``version``, or values out of range.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"expected a JSON object with the key 'window', got {shown(values)}")
        if AUTHORS_KEYS.keys() & values.keys():
            return cls(**_from_authors(values))
        known = [field.name for field in fields(cls)]
        _check_version(values.get("version", CONFIG_VERSION))
        unknown = sorted(map(str, values.keys() - {"version", *known}))
        if unknown:
            raise ValueError(f"unknown keys {_listed(unknown)}; known are {', '.join(known)}")
        if "window" not in values:
            raise ValueError("the key 'window' is missing; give a number of keys, or null")
        return cls(**{name: values[name] for name in known if name in values})

    def save(self, path: str | Path) -> None:
        """Write the configuration as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> SWAAConfig:
        """Read a JSON file written by :meth:`save`, a recipe file, or the paper's settings.

        Args:
            path: the file; ``file#index`` names one entry of a list of settings.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: for a file that holds no configuration; the message names the file.
        """
        name, values = _read_json(str(path))
        try:
            return cls.from_dict(_select(values, str(path)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None

    def within(self, num_layers: int) -> SWAAConfig:
        """The same configuration without listed layers that a model of this depth does not have.

        >>> SWAAConfig(window=8, full_layers=[1, 99]).within(30).full_layers
        (1,)
        """
        listed: dict[str, Any] = {
            name: tuple(index for index in layers if index < num_layers)
            for name in FULL
            if isinstance(layers := getattr(self, name), tuple)
        }
        if isinstance(self.full_decode, HeadSelection):
            listed["full_decode"] = self.full_decode.within(num_layers) or False
        if self.selected_layers and listed.get("selected_layers") == ():
            listed["selected_keys"] = 0
        full = [listed.get(name, getattr(self, name)) for name in FULL]
        if not any(full):
            listed["decode_keys"] = 0
        return replace(self, **listed)

    def covers(self, prompt_tokens: int, new_tokens: int = 0) -> bool:
        """Whether every row sees every key by window and sinks alone, so that nothing slides.

        >>> SWAAConfig(window=8, sink_tokens=2).covers(9), SWAAConfig(window=8).covers(9)
        (True, False)

        Args:
            prompt_tokens: length of the longest prompt.
            new_tokens: length of the longest answer.

        Returns:
            False without a window: there is nothing that could slide.
        """
        tokens = prompt_tokens + (0 if self.full_decode is True else new_tokens)
        return self.window is not None and tokens <= self.window + self.sink_tokens

    def idle(self, what: str) -> str:
        """The sentence for what :meth:`covers` found: ``nothing slides: ...``.

        Args:
            what: what is covered, such as ``the prompt of 9 tokens``.
        """
        sinks = f" and {self.sink_tokens} sinks cover" if self.sink_tokens else " covers"
        return f"nothing slides: window {self.window}{sinks} {what}; it is full attention"

    def describe(self) -> str:
        """One line for people: ``window 2048, 64 sinks, full layers odd, full decode``."""
        if self.window is None:
            return "full attention"
        parts = [f"window {self.window}", f"{self.sink_tokens} sinks"]
        if self.full_layers:
            parts.append(f"full layers {_words(self.full_layers)}")
        if self.full_decode:
            parts.append(f"full decode{_where(self.full_decode)}")
        if self.dense_tail:
            parts.append(f"dense tail {self.dense_tail}")
        if self.selected_layers:
            layers = _words(self.selected_layers)
            parts.append(f"{self.selected_keys} selected keys in layers {layers}")
        if self.decode_keys:
            parts.append(f"{self.decode_keys} keys chosen in decoding")
        return ", ".join(parts)


def _where(full_decode: bool | LayerSelection | HeadSelection) -> str:
    if isinstance(full_decode, bool):
        return ""
    if isinstance(full_decode, HeadSelection):
        return f" in KV heads {full_decode}"
    return f" in layers {_words(full_decode)}"


def _words(layers: LayerSelection) -> str:
    return layers if isinstance(layers, str) else ",".join(map(str, layers))


def _listed(names: list[str]) -> str:
    """The first of the names, each shortened."""
    return ", ".join(shown(name)[1:-1] for name in names[:5]) + (" ..." if len(names) > 5 else "")


def _check_count(name: str, value: object, least: int, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {shown(value)}; expected a whole number of {unit}")
    if value < least:
        raise ValueError(f"{name} is {shown(value)}; expected at least {least} {unit}")
    if value > MOST_TOKENS:
        raise ValueError(f"{name} is {shown(value)}; expected at most {MOST_TOKENS}")


def _check_selected(layers: LayerSelection, keys: int) -> None:
    _check_count("selected_keys", keys, 0, "keys")
    if bool(layers) != bool(keys):
        missing = "selected_keys" if layers else "selected_layers"
        raise ValueError(
            f"selected_layers is {_words(layers)!r} and selected_keys {keys}: one does nothing"
            f" without the other; give {missing} too"
        )
    if keys:
        from swaa.attention.selection import KEY_BLOCK  # imports PyTorch

        if keys % KEY_BLOCK:
            raise ValueError(
                f"selected_keys is {keys}; keys are selected in blocks of {KEY_BLOCK}: give a"
                " multiple"
            )


def _check_version(version: object) -> None:
    number = version if isinstance(version, int) and not isinstance(version, bool) else 0
    if number == CONFIG_VERSION:
        return
    remedy = (
        "upgrade swaa to read a newer file"
        if number > CONFIG_VERSION
        else "there is no such version"
    )
    raise ValueError(
        f"format version {shown(version)}; this swaa reads version {CONFIG_VERSION}: {remedy}"
    )


def _from_authors(values: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's keys as ours; their window of None or 0 means full attention."""
    unknown = sorted(map(str, values.keys() - AUTHORS_KEYS.keys()))
    if unknown:
        raise ValueError(
            f"unknown keys {_listed(unknown)} next to the paper's {', '.join(AUTHORS_KEYS)}"
        )
    if "sliding_window_size" not in values:
        raise ValueError(
            "the paper's key 'sliding_window_size' is missing; give a number of keys, or null"
        )
    renamed = {AUTHORS_KEYS[key]: value for key, value in values.items()}
    window = renamed["window"]
    # Their speed tests pass settings on as words of a command line: "true", and "" for no layers.
    decode = renamed.get("full_decode") or False
    decode = (
        {"true": True, "false": False}.get(decode, decode) if isinstance(decode, str) else decode
    )
    return {
        "window": None if window == 0 and not isinstance(window, bool) else window,
        "sink_tokens": renamed.get("sink_tokens") or 0,
        "full_layers": renamed.get("full_layers") or (),
        "full_decode": decode,
    }


def _read_json(path: str) -> tuple[str, Any]:
    name, _, index = path.rpartition("#")
    name = name if name and index.isdecimal() else path
    try:
        return name, json.loads(Path(name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, too many digits, nested too deeply
        raise ValueError(f"{name} is not JSON that can be read: {error}") from None


def _select(values: Any, path: str) -> Any:
    """One configuration out of a file's content: itself, a recipe's, or one of a settings list."""
    name, _, index = path.rpartition("#")
    indexed = bool(name) and index.isdecimal()
    if not isinstance(values, list):
        if indexed:
            raise ValueError(f"holds one configuration, no list; leave out '#{index}'")
        return _inner(values, "config") if isinstance(values, dict) else values
    if not indexed:
        if len(values) != 1:
            raise ValueError(f"holds {len(values)} settings; name one by '{path}#0' and so on")
        name, index = path, "0"
    if int(index) >= len(values):
        raise ValueError(f"holds {len(values)} settings; there is no '#{index}'")
    entry = values[int(index)]
    return _setting(entry) if isinstance(entry, dict) else entry


def _inner(values: dict[str, Any], key: str) -> Any:
    """What an object holds under a key, or the object; refuse knobs next to that key."""
    if key not in values:
        return values
    knobs = {field.name for field in fields(SWAAConfig)}
    beside = sorted(values.keys() & {*knobs, *AUTHORS_KEYS})
    if beside:
        raise ValueError(
            f"holds {', '.join(beside)} next to {key!r}, where nobody would read them;"
            " put them into it"
        )
    return values[key]


def _setting(entry: dict[str, Any]) -> Any:
    """The configuration of an entry of a settings list.

    Some of the paper's own lists set ``force_fa_decode`` for full attention too, where it is idle.
    """
    given = _inner(entry, "swaa_config")
    if isinstance(given, dict) and "sliding_window_size" in given:
        full = given["sliding_window_size"] is None
        return {**given, "force_fa_decode": False} if full else given
    return given
