"""Flags that several verbs share, and the configuration that the recipe flags give."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from swaa.cli.numbers import dtype_name, whole_number
from swaa.config import SWAAConfig
from swaa.heads import HeadSelection
from swaa.layers import LayerSelection, parse_layers
from swaa.recipes import DEFAULT as DEFAULT_RECIPE

if TYPE_CHECKING:
    from swaa.models import LoadedModel

Made = TypeVar("Made")


OUTPUT = ("-o", "--output")
"""Names of the flag for where a verb writes."""

KNOBS = (
    "window",
    "sink_tokens",
    "full_layers",
    "full_decode",
    "dense_tail",
    "selected_layers",
    "selected_keys",
    "decode_keys",
)
"""Names, in parsed arguments, of the flags that change a recipe."""


_KINDS: dict[str, Callable[[str], Any]] = {
    **{"N": int, "T": dtype_name},
    **dict.fromkeys(("X", "S", "SHARE", "GIB"), float),
}
"""How values are read, by what a table of flags calls them; others are text."""


def add_flags(parser: Any, table: str) -> None:
    """Add flags from a table, as their help shows them.

    A line is a flag, two spaces and its help text, which indented lines continue::

        how it runs: the title of a group, perhaps with a description
        --batch-size N=1  prompts answered at once
        --unit layers|heads=layers  what a budget buys
        --budget B...  such as layers=1/4; may be given several times (default: none)
        --json  print JSON (default: tables)

    A flag without a value is a switch. What follows ``=`` is the default. A help text that names
    no default ends with it.
    """
    group: Any = parser
    for entry in re.split(r"\n(?=\S)", inspect.cleandoc(table)):
        line = " ".join(part.strip() for part in entry.splitlines() if part)
        flag, _, text = line.partition("  ")
        if not flag.startswith("--"):
            title, _, description = line.partition(": ")
            group = parser.add_argument_group(title.removesuffix(":"), description or None)
            continue
        name, _, value = flag.partition(" ")
        word, _, default = value.partition("=")
        if "default" not in text:
            text += " (default: %(default)s)" if value else " (default: off)"
        group.add_argument(name, help=text, **_options(word, default))


def _options(word: str, default: str) -> dict[str, Any]:
    """What argparse is told about a flag."""
    if not word:
        return {"action": "store_true"}
    if word.endswith("..."):
        return {"action": "append", "metavar": word.removesuffix("...")}
    kind = _KINDS.get(word, str)
    given = kind(default) if default else None
    if "|" in word:
        return {"choices": word.split("|"), "default": given}
    return {"type": kind, "metavar": word, "default": given}


def add_config_options(
    parser: argparse.ArgumentParser, *, default: str | None = DEFAULT_RECIPE
) -> None:
    """Add ``--recipe`` and the knobs that override it.

    Args:
        parser: of a verb; its parsed arguments go to :func:`config_from`.
        default: the recipe that the help names; ``None``: the help names no default.
    """
    group = parser.add_argument_group("configuration", "a recipe, and knobs on top of it")
    said = f" (default: {default})" if default else ""
    group.add_argument(
        "--recipe",
        metavar="R",
        help=f"name (see 'swaa recipes'), JSON file, or file#index of a settings list{said}",
    )
    add_flags(group, _KNOB_FLAGS)


_KNOB_FLAGS = """
--window KEYS  keys a sliding row sees, itself included (tokens), or none (default: the recipe's)
--sink-tokens TOKENS  first tokens of each sequence, always visible (default: the recipe's)
--full-layers L  layers left full: 1,3,5 or a rule such as odd, every:4+1, middle:1/4, or none
    (default: the recipe's)
--full-decode L  layers in which generated tokens see every key: all, none, 1,3,5 or a rule; or KV
    heads of layers, such as 14:0,16:0+1 (default: the recipe's)
--dense-tail TOKENS  last prompt tokens that see every key (default: the recipe's)
--selected-layers L  layers whose prompt tokens also see older keys by content: all, none, 1,3,5
    or a rule (default: the recipe's)
--selected-keys KEYS  how many older keys they see, a multiple of 64 (default: the recipe's)
--decode-keys KEYS  most older keys that a generated token reads where it could see every key,
    chosen by content, a multiple of 16; 0: all of them (default: the recipe's)
"""


def config_from(
    args: argparse.Namespace, *, default: SWAAConfig | Mapping[str, Any] | str = DEFAULT_RECIPE
) -> SWAAConfig:
    """The configuration that the flags of :func:`add_config_options` name.

    Args:
        args: parsed arguments.
        default: recipe or configuration when ``--recipe`` is not given, for instance the one
            that a checkpoint carries.

    Raises:
        ValueError: naming the flag, for a value that cannot be read or would be ignored.
        FileNotFoundError: for a recipe file that is not there.
    """
    from swaa.recipes import resolve

    base = resolve(args.recipe if args.recipe is not None else default)
    changes = _changes(args)
    window = changes.get("window", base.window)
    ignored = [name for name in changes if name != "window" and window is None]
    if ignored:
        raise ValueError(
            f"{flag_of(ignored[0])} would do nothing: the window is none, every layer is full;"
            " give --window too"
        )
    return SWAAConfig(window=None) if window is None else resolve(base, **changes)


def settings_from(args: argparse.Namespace, names: str) -> list[tuple[str, SWAAConfig]]:
    """Name and configuration of several recipes; the knobs change all but full attention.

    Args:
        args: parsed arguments, with those of :func:`add_config_options` and ``recipes``.
        names: of the recipes, separated by commas.

    Raises:
        ValueError: for ``--recipe`` together with ``--recipes``; for a recipe that is unknown or
            named twice; for knobs that would do nothing.
    """
    from swaa.recipes import resolve

    if args.recipe is not None and args.recipes is not None:
        raise ValueError("--recipe and --recipes exclude each other; give one of them")
    settings: list[tuple[str, SWAAConfig]] = []
    for name in words(names, "--recipes" if args.recipe is None else "--recipe"):
        one = argparse.Namespace(**vars(args) | {"recipe": name})
        slides = resolve(name).window is not None
        settings.append((name, config_from(one) if slides else resolve(name)))
    knobs = [name for name in KNOBS if getattr(args, name) is not None]
    if knobs and all(config.window is None for _, config in settings):
        raise ValueError(
            f"{flag_of(knobs[0])} would do nothing: every recipe given is full attention"
        )
    return settings


def name_from(args: argparse.Namespace, *, default: str = DEFAULT_RECIPE) -> str:
    """What to call the configuration in tables and results: ``balanced window=512``.

    Args:
        args: parsed arguments.
        default: name when ``--recipe`` is not given.
    """
    given = [f"{name}={getattr(args, name)}" for name in KNOBS if getattr(args, name) is not None]
    return " ".join([args.recipe if args.recipe is not None else default, *given])


def words(text: str, flag: str) -> tuple[str, ...]:
    """The parts of a flag that takes several values, separated by commas and optional spaces.

    Raises:
        ValueError: naming the flag, when a part is empty or appears twice.
    """
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise ValueError(f"{flag} {text!r}: expected names or numbers, with commas between them")
    refuse_twice(parts, f"{flag} {text}")
    return parts


def refuse_twice(parts: Sequence[str], given: str) -> None:
    """Refuse a list that names one thing twice.

    Raises:
        ValueError: naming the first such part.
    """
    twice = next((part for part in parts if parts.count(part) > 1), None)
    if twice is not None:
        raise ValueError(f"{given} names {twice} twice")


def whole_numbers(text: str, flag: str, *, least: int = 1) -> tuple[int, ...]:
    """The numbers of a flag that takes several, separated by commas: ``8192,32k``.

    Args:
        text: the flag's value.
        flag: for the message.
        least: smallest number allowed.

    Raises:
        ValueError: naming the flag, for anything else.
    """
    try:
        numbers = tuple(map(whole_number, words(text, flag)))
    except argparse.ArgumentTypeError:
        numbers = ()
    if not numbers or min(numbers) < least:
        raise ValueError(f"{flag} {text}: expected whole numbers of at least {least}, with commas")
    return numbers


def flag_of(name: str) -> str:
    """The flag of a name in parsed arguments: ``--batch-size`` of ``batch_size``."""
    return f"--{name.replace('_', '-')}"


def made_from(args: argparse.Namespace, kind: Callable[..., Made], **given: Any) -> Made:
    """An object whose options are flags of the same names.

    Args:
        args: parsed arguments.
        kind: its class, such as a dataclass of options.
        given: options that are no flag, or not as they are typed.
    """
    flags = {n: v for n, v in vars(args).items() if n in inspect.signature(kind).parameters}
    return kind(**flags | given)


def require_at_least(args: argparse.Namespace, least: int, *names: str, unit: str = "") -> None:
    """Refuse smaller numbers.

    Args:
        args: parsed arguments; ``None`` among them is allowed.
        least: the smallest number allowed.
        names: of the flags, in parsed arguments.
        unit: of the numbers, for the message.

    Raises:
        ValueError: naming the flag.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            expected = f"at least {least} {unit}" if unit else f"a whole number of at least {least}"
            raise ValueError(f"{flag_of(name)} {value}: expected {expected}")


def add_backend_option(parser: Any, *, names: str = "fa4, triton, sdpa or reference") -> None:
    """Add ``--backend``, for the attention of a model that is loaded here."""
    add_flags(parser, f"--backend B=auto  attention: auto, {names}")


def add_model_options(parser: Any, *, auto: str = "the checkpoint's own") -> None:
    """Add the flags that say how a model is loaded."""
    add_flags(
        parser,
        f"""
        --dtype T=auto  float32, bfloat16, float16 or auto, {auto}
        --device D=auto  cpu, cuda, cuda:1, or auto, a GPU if there is one
        --trust-remote-code  run Python code that comes with the checkpoint
        """,
    )


def load_from(args: argparse.Namespace, **options: Any) -> LoadedModel:
    """The model and tokenizer that the flags of :func:`add_model_options` name."""
    from swaa.models import load_model

    flags = {name: getattr(args, name) for name in ("dtype", "device", "trust_remote_code")}
    return load_model(args.model, **(flags | options))


def add_measured_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--again`` and ``--output`` to a verb that keeps its measurements."""
    add_flags(parser, "--again  measure what is measured already (default: show it)")
    add_results_option(parser)
    add_flags(parser, "--json  print the result as JSON alone (default: tables)")


@contextlib.contextmanager
def tables_aside(args: argparse.Namespace) -> Iterator[None]:
    """With ``--json``, print tables on stderr, so that stdout holds JSON alone."""
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        yield


def add_results_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``, the folder of all results, under every name that it has had."""
    parser.add_argument(
        *OUTPUT,
        "--results",
        dest="results",
        default="results",
        metavar="DIR",
        help="folder of results (default: %(default)s)",
    )


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if args.window is not None:
        changes["window"] = None if args.window == "none" else _count(args.window, "window", 1)
    for name in ("sink_tokens", "dense_tail", "selected_keys", "decode_keys"):
        if getattr(args, name) is not None:
            changes[name] = _count(getattr(args, name), name, 0)
    for name in ("full_layers", "selected_layers"):
        if getattr(args, name) is not None:
            changes[name] = _layers(getattr(args, name), name)
    if changes.get("selected_layers") == ():
        changes.setdefault("selected_keys", 0)
    if args.full_decode is not None:
        changes["full_decode"] = _full_decode(args.full_decode)
    return changes


def _count(text: str, name: str, least: int) -> int:
    try:
        value = whole_number(text)
    except argparse.ArgumentTypeError:
        value = least - 1
    if value < least:
        also = " or none" if name == "window" else ""
        raise ValueError(
            f"{flag_of(name)} {text}: expected a whole number of at least {least}{also}"
        )
    return value


def _full_decode(text: str) -> bool | LayerSelection | HeadSelection:
    heads = HeadSelection.from_words(text, name=flag_of("full_decode"))
    return text == "all" or heads or _layers(text, "full_decode")


def _layers(text: str, name: str) -> LayerSelection:
    if text == "none":
        return ()
    items = [item.strip() for item in text.split(",")]
    if all(item.lstrip("-").isdecimal() for item in items):
        return parse_layers([int(item) for item in items], name=flag_of(name))
    return parse_layers(text, name=flag_of(name))
