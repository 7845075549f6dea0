"""``<think>`` and ``</think>``: what a model says to itself, apart from what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

BEGIN, END = "<think>", "</think>"


def opened(prompt: str) -> str:
    r"""The ``<think>`` with which a prompt ends, to open the model's thoughts; else nothing.

    >>> opened("<|assistant|><think>\n"), opened("<|assistant|><think></think>")
    ('<think>\n', '')
    """
    _, mark, tail = prompt.rpartition(BEGIN)
    return mark + tail if mark and not tail.strip() else ""


def spoken(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode without special tokens, except those around thoughts."""
    special = _special(tokenizer)
    kept = [token for token in ids if special.get(token) in (None, BEGIN, END)]
    text: Any = tokenizer.decode(kept, skip_special_tokens=False)
    return text


def hidden_beside_thoughts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Special tokens to remove from a text; none where the marks of thoughts are not special."""
    texts = set(_special(tokenizer).values())
    if END not in texts:
        return ()
    return tuple(sorted(texts - {BEGIN, END}, key=len, reverse=True))


def without(text: str, parts: Iterable[str]) -> str:
    """A text without the given parts."""
    for part in parts:
        text = text.replace(part, "")
    return text


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Special tokens: those with a role, and those added as special."""
    added = {
        index: token.content
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    named: Any = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return {**dict(named), **added}
