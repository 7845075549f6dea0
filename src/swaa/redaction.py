"""What looks like a secret, by its name or its value; command lines and values without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HIDDEN = "***"
"""What replaces a secret."""

_FLAGS = ("hf-token", "api-key", "ssl-keyfile-password")
"""Flags of ``vllm serve`` that take secrets; it accepts them cut short."""

_LAST = frozenset(("token", "key", "auth", "authorization", "cookie"))
"""Words that mark a secret at the end of its name; inside a name they mean something else."""

_ANYWHERE = frozenset(
    ("apikey", "credential", "credentials", "passphrase", "passwd", "password", "secret", "secrets")
)

_VALUE = re.compile(
    r"""(?x)
    \b(?: hf_ | sk- | gh[a-z]_ | github_pat_ | glpat- | xox[a-z]- | nvapi- | AKIA | AIza )
        (?= [A-Za-z_-]*[0-9] ) [A-Za-z0-9_-]{16,}       # what services hand out has digits
    | \bBearer\s+\S{16,}
    | \beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}      # a JSON web token
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----
    | ://[^/\s:@]*:[^/\s@]+@                            # a URL with a password
    """
)


def is_secret_name(name: str) -> bool:
    """Whether a name is that of a secret: ``hf-token``, ``aws_secret_access_key``.

    Args:
        name: name of a flag, without its dashes, or of a key.
    """
    words = [word for word in re.split(r"[^a-z0-9]+", _spaced(name).lower()) if word]
    return bool(words) and (words[-1] in _LAST or not _ANYWHERE.isdisjoint(words))


def is_secret_value(text: str) -> bool:
    """Whether a text holds a key such as services issue, or a URL with a password."""
    return _VALUE.search(text) is not None


def without_secrets(value: Any) -> Any:
    """JSON values with :data:`HIDDEN` in place of secrets."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if item and not isinstance(item, int | float) and is_secret_name(str(key))
            else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return HIDDEN if isinstance(value, str) and is_secret_value(value) else value


def arguments_without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line with :data:`HIDDEN` in place of secrets.

    >>> arguments_without_secrets(["--dtype", "auto", "--api-key", "one", "two", "--uvloop"])
    ['--dtype', 'auto', '--api-key', '***', '***', '--uvloop']

    Args:
        arguments: flags as ``--name value ...`` or ``--name=value``; JSON values are searched too.
    """
    return list(_hidden(arguments))


def _hidden(arguments: Sequence[str]) -> Iterator[str]:
    secret = False
    for word in arguments:
        name, is_joined, value = word.partition("=")
        short = is_joined and not secret and name.startswith("-")  # -O.name=value
        if not (word.startswith("--") or short):
            yield HIDDEN if secret else _value(word)
            continue
        hides = _is_secret_flag(name.lstrip("-"))
        secret = hides and not short  # values of a long flag may follow it
        yield name + is_joined + (HIDDEN if hides and value else _value(value))


def _is_secret_flag(name: str) -> bool:
    name = name.replace("_", "-")
    cut_short = name != "" and any(flag.startswith(name) for flag in _FLAGS)
    return cut_short or is_secret_name(name)


def _value(text: str) -> str:
    if text[:1] in ("{", "["):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            shown = without_secrets(content)
            return text if shown == content else json.dumps(shown)
    return HIDDEN if is_secret_value(text) else text


def _spaced(name: str) -> str:
    """``accessKey`` as ``access Key``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
