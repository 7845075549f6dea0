"""The sequences of one call of ``generate``: their phase is tied to the cache that holds them.

A forward pass belongs to a call when it brings the call's cache, from whatever thread, hook or
nested call it comes. Any other pass inside the call (of a negative prompt, another model, or the
same model called by a logits processor) brings another cache or none, and the call does not
describe it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedModel

from swaa.integrations.transformers.mask import left_padding
from swaa.phase import Phase

_ATTRIBUTE = "swaa_sequences"


class Sequences:
    """What is known about the sequences of one call.

    The end of the prompt is read from the first forward pass, because a wrapper of the model may
    add slots to what ``generate`` got (soft prompts, virtual tokens).

    Args:
        prompt_length: slots of the prompt as ``generate`` counts them.
        first_end: slots filled by the first pass as ``generate`` counts them; None where that is
            not known before (drafts): then no slots may be added.
        awaited_by: the model whose first pass will bring a cache that ``generate`` makes itself.
        padding: the smallest left padding of a prompt; None: read it from the first pass's mask.
    """

    def __init__(
        self,
        prompt_length: int,
        *,
        first_end: int | None = None,
        awaited_by: PreTrainedModel | None = None,
        padding: int | None = None,
    ) -> None:
        self.prompt_length = prompt_length
        self.awaited_by = awaited_by
        self._first_end = first_end
        self._padding = padding
        self._phase: Phase | None = None

    def phase(self, cache: Cache, rows: int, mask: Any) -> Phase:
        """The phase of a pass; the first pass determines it.

        Args:
            cache: of the call.
            rows: query rows of the pass.
            mask: 1 where a slot is real, ``[batch, slots]``; anything else means no mask.
        """
        if self._phase is None:
            added = 0
            if self._first_end is not None:
                added = int(cache.get_seq_length()) + rows - self._first_end
            end = self.prompt_length + added
            padding = least_padding(mask) if self._padding is None else self._padding
            # Where slots were added to the mask, it must be checked again.
            self._phase = Phase(prompt_length=end, generating=not added, longest=end - padding)
        return self._phase


def least_padding(mask: Any) -> int:
    """Slots of left padding that every sequence has; ``mask`` is an ``attention_mask``."""
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return 0
    starts = left_padding(mask)
    return 0 if starts is None else int(starts.min())


class NoCache(Cache):
    """Ties a call without a cache to its passes; the model itself never gets it."""

    def __init__(self) -> None:
        super().__init__(layers=[])


_CALL: ContextVar[Sequences | None] = ContextVar("swaa_call", default=None)


@contextmanager
def calling(sequences: Sequences, cache: Cache | None) -> Iterator[None]:
    """Tie sequences to their cache inside the block, for the passes of one ``generate``.

    Args:
        sequences: the call's sequences.
        cache: the cache that will hold them; None where ``generate`` will make one.
    """
    token = _CALL.set(sequences)
    if cache is not None:
        tie(cache, sequences)
    try:
        yield
    finally:
        _CALL.reset(token)
        sequences.awaited_by = None
        if cache is not None and tied(cache) is sequences:
            del vars(cache)[_ATTRIBUTE]


def current_call() -> Sequences | None:
    """The sequences of the innermost swaa ``generate`` around this code."""
    return _CALL.get()


def tie(cache: Cache, sequences: Sequences) -> None:
    """From now on, passes that bring the cache belong to these sequences."""
    vars(cache)[_ATTRIBUTE] = sequences


def tied(cache: Any) -> Sequences | None:
    """The sequences that a call tied to a cache, if any."""
    return getattr(cache, _ATTRIBUTE, None)


def phase_of_pass(model: PreTrainedModel, cache: Any, rows: int, mask: Any) -> Phase | None:
    """The phase of the sequences of a forward pass; None where no call describes them.

    Args:
        model: the model of the pass.
        cache: ``past_key_values`` of the pass.
        rows: query rows of the pass.
        mask: ``attention_mask`` of the pass.
    """
    if not isinstance(cache, Cache):
        return None
    sequences = tied(cache)
    if sequences is None:
        call = _CALL.get()
        if call is None or call.awaited_by is not model:
            return None
        call.awaited_by = None
        tie(cache, sequences := call)
    return sequences.phase(cache, rows, mask)
