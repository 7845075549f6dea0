"""A conversation with a model, whose cache is kept between turns where that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from swaa.generation import Pieces, check_context, frame
from swaa.integrations.transformers.cache_name import cache_argument, cache_of
from swaa.integrations.transformers.support import execution_device
from swaa.memory import explain_out_of_memory
from swaa.models import LoadedModel


class Conversation:
    """The messages so far. The model, adapted or not, answers greedily.

    Cached tokens keep the phase they were computed in, as in any later turn of ``generate``.

    Args:
        loaded: model and tokenizer.
        max_new_tokens: longest answer (tokens).

    Attributes:
        messages: ``role`` and ``content`` of each message, the model's answers included.
        kept_tokens: tokens of the last prompt that the cache held already.
    """

    def __init__(self, loaded: LoadedModel, *, max_new_tokens: int) -> None:
        self.messages: list[dict[str, str]] = []
        self.kept_tokens = 0
        self._loaded = loaded
        self._max_new_tokens = max_new_tokens
        self._cache: Any = None
        self._ids: Tensor | None = None  # what the cache holds, and the last token of the answer

    def reset(self) -> None:
        """Begin a new conversation."""
        self.messages, self._cache, self._ids = [], None, None

    def ask(self, text: str, on_text: Callable[[str], None] | None = None) -> str:
        """Answer one more message; a message that fails does not join the conversation.

        Args:
            text: the message.
            on_text: called with each piece of the answer as it comes.

        Raises:
            ValueError: for a conversation that does not fit the model or the device's memory.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        tokenizer = self._loaded.tokenizer
        ids = frame(tokenizer, messages)
        tokens = ids.shape[1]
        check_context(self._loaded, tokens, self._max_new_tokens, advice="start over (/reset)")
        output = self._generate(ids, Pieces(tokenizer, on_text))
        # Kept as generated, spaces included, so that the next prompt begins with the same tokens.
        answer = tokenizer.decode(output.sequences[0, tokens:], skip_special_tokens=True)
        assert isinstance(answer, str)
        self._cache, self._ids = cache_of(output), output.sequences.cpu()
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer

    def _generate(self, ids: Tensor, streamer: TextStreamer) -> Any:
        cache = self._take_cache(ids)
        model: Any = self._loaded.model  # its class types `generate` as a tensor
        with (
            explain_out_of_memory(f"a conversation of {ids.shape[1]:,} tokens", "start over"),
            torch.inference_mode(),
        ):
            return model.generate(
                ids.to(execution_device(model)),
                max_new_tokens=self._max_new_tokens,
                do_sample=False,
                streamer=streamer,
                return_dict_in_generate=True,
                **({} if cache is None else cache_argument(cache)),
            )

    def _take_cache(self, ids: Tensor) -> Any:
        """The cache, if the prompt begins with all that it holds; else None: compute it again.

        Templates may rewrite earlier turns (thoughts are left out), and an answer's text may be
        split into other tokens than those that were generated.
        """
        cache, self._cache = self._cache, None  # an interrupted turn leaves it half filled
        self.kept_tokens = 0
        if cache is None or self._ids is None:
            return None
        held = int(cache.get_seq_length())
        if held >= ids.shape[1] or not torch.equal(self._ids[:, :held], ids[:, :held]):
            return None
        self.kept_tokens = held
        return cache
