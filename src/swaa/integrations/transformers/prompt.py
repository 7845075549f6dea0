"""What a call of ``generate`` got: how many tokens of the prompt, and how many a cache holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils.peft_utils import check_peft_version

from swaa.integrations.transformers.cache_name import CACHE, cache_in
from swaa.integrations.transformers.mask import left_padding

PREFIX_TYPES = ("PREFIX_TUNING", "CARTRIDGE")
"""PEFT's methods that bring their own cache."""
DRAFTS = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
"""Options of ``generate`` that make it verify drafts."""
_PROMPT = "swaa_prompt"


class Given(NamedTuple):
    """Counts of one call.

    Attributes:
        tokens: slots of the prompt, as ``generate`` counts them.
        rows: tokens that were passed, as ids or embeddings.
        cached: slots that the cache already holds.
    """

    tokens: int
    rows: int
    cached: int


def read_given(kwargs: dict[str, Any]) -> Given:
    """Count what was passed; the mask spans what the cache already holds."""
    mask, cache = kwargs.get("attention_mask"), cache_in(kwargs)
    passed = (kwargs.get(name) for name in ("inputs_embeds", "inputs", "input_ids"))
    rows = next((x.shape[1] for x in passed if x is not None), 1)
    cached = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
    return Given(rows if mask is None else mask.shape[1], rows, cached)


def check_kept_cache(given: Given, *, masked: bool, drafts: bool) -> None:
    """Refuse what ``generate`` would compute wrongly on a cache that is not empty.

    Args:
        given: counts of the call.
        masked: whether an ``attention_mask`` was passed.
        drafts: whether drafts will be verified.

    Raises:
        ValueError: with the reason.
    """
    if not given.cached:
        return
    if drafts:
        raise ValueError(
            "drafts (an assistant, prompt lookup) read the whole prompt again on a cache that holds"
            f" {given.cached} tokens already: leave out {CACHE}, or the drafts"
        )
    new = given.tokens - given.cached
    if new < 1 or given.rows not in (given.tokens, new):
        spanned = f" and a mask of {given.tokens}" if masked else ""
        raise ValueError(
            f"got {given.rows} tokens{spanned} for a cache that holds {given.cached}: pass the"
            " whole conversation as input_ids, or only its new tokens with an attention_mask that"
            " spans what is cached and what is new"
        )


def remember_prompt(cache: Cache, kwargs: dict[str, Any]) -> None:
    """Keep the prompt's ids with its keys, for :func:`check_same_text`."""
    ids = _ids(kwargs)
    if ids is not None:
        vars(cache)[_PROMPT] = ids


def check_same_text(given: Given, kwargs: dict[str, Any]) -> None:
    """Refuse a conversation that does not begin as the kept cache does.

    Otherwise a long message alone would be taken for the whole conversation.

    Raises:
        ValueError: when the texts differ.
    """
    ids, cached = _ids(kwargs), getattr(cache_in(kwargs), _PROMPT, None)
    if not given.cached or ids is None or cached is None or given.rows != given.tokens:
        return
    both = min(cached.shape[1], given.cached)
    if len(ids) == len(cached) and not torch.equal(
        ids[:, :both].to(cached.device), cached[:, :both]
    ):
        raise ValueError(
            "input_ids do not begin with the text that the cache holds: pass the whole"
            " conversation, or only its new tokens with an attention_mask that spans all of it"
        )


def _ids(kwargs: dict[str, Any]) -> Tensor | None:
    ids = kwargs.get("inputs") if kwargs.get("inputs") is not None else kwargs.get("input_ids")
    return ids if isinstance(ids, Tensor) and kwargs.get("inputs_embeds") is None else None


def check_mask(mask: Any) -> int | None:
    """Refuse what generation cannot continue: holes, and padding between prompt and answer.

    Returns:
        The smallest left padding of any prompt; None without a mask.
    """
    if mask is None:
        return None
    starts = left_padding(mask)
    empty = (mask == 0).all(-1).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"prompt {empty[0]} of {len(mask)} (from 0) is empty: its attention_mask is 0"
            " everywhere; give it a token, such as the one that begins a text, or leave it out"
        )
    if not bool(mask[:, -1].all()):
        raise ValueError(
            "the prompts are padded on the right, between prompt and answer; pad on the left"
            " (tokenizer.padding_side = 'left')"
        )
    return 0 if starts is None else int(starts.min())


def virtual_tokens(model: PreTrainedModel) -> str | None:
    """The PEFT method that will add virtual tokens to what ``generate`` got; else None.

    While PEFT generates, it puts its own ``prepare_inputs_for_generation`` in the model's place.
    """
    owner: Any = getattr(model.prepare_inputs_for_generation, "__self__", model)
    settings = None if owner is model else getattr(owner, "active_peft_config", None)
    if not getattr(settings, "is_prompt_learning", False):
        return None
    return str(getattr(settings.peft_type, "value", settings.peft_type))  # pyright: ignore


def check_virtual_tokens(method: str, **unable: Any) -> None:
    """Refuse modes in which PEFT drops tokens, or in which the slots it adds cannot be counted.

    Args:
        method: PEFT's method.
        unable: the modes that were asked for together with it, by name.

    Raises:
        ValueError: when any of them was asked for, or when Transformers needs a newer PEFT: an
            older one loses the cache, whose name changed.
    """
    try:
        check_peft_version(MIN_PEFT_VERSION)
    except ValueError as error:
        raise ValueError(
            f"{method.lower().replace('_', ' ')} adds virtual tokens, which need a PEFT that the"
            f" installed Transformers supports, {MIN_PEFT_VERSION} or later"
        ) from error
    for name, asked in unable.items():
        if asked:
            raise ValueError(
                f"{method.lower().replace('_', ' ')} adds virtual tokens, which do not go with"
                f" {name} of an adapted model: use the ordinary generate, without it"
            )
