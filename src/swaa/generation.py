"""Answer a question about a document and measure it: time to first token, speed, KV bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from swaa.adaptation import is_adapted
from swaa.integrations.transformers.cache import SWAACache, layer_bytes
from swaa.integrations.transformers.cache_name import cache_of
from swaa.integrations.transformers.fast import graph_sample, require_fast
from swaa.integrations.transformers.support import UnsupportedModelError, execution_device
from swaa.memory import explain_out_of_memory
from swaa.models import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer and what it cost.

    Attributes:
        text: the answer, special tokens left out.
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens of the answer, including the end token.
        first_token_s: seconds from the call to the first token: the prefill.
        tokens_per_s: speed after the first token; ``None`` for an answer of one token.
        kv_bytes: keys and values held at the end (bytes).
        peak_kv_bytes: the most that was held at once (bytes).
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    first_token_s: float
    tokens_per_s: float | None
    kv_bytes: int
    peak_kv_bytes: int


def build_prompt(tokenizer: PreTrainedTokenizerBase, document: str, question: str) -> Tensor:
    """Document, then question, as token ids ``[1, tokens]``.

    The chat template frames them where the tokenizer has one.

    Raises:
        ValueError: for an empty document or question.
    """
    for name, text in (("document", document), ("question", question)):
        if not text.strip():
            raise ValueError(f"the {name} is empty")
    content = f"{document.strip()}\n\n{question.strip()}"
    return frame(tokenizer, [{"role": "user", "content": content}])


def frame(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> Tensor:
    """Messages as the token ids of a prompt, ``[1, tokens]``.

    Args:
        tokenizer: its chat template frames them; without a template each message is one line.
        messages: ``role`` and ``content`` of each.
    """
    if tokenizer.chat_template is None:
        text = "".join(f"{message['content']}\n" for message in messages)
        return _token_ids(tokenizer, text, add_special_tokens=True)
    framed = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert isinstance(framed, str)
    return _token_ids(tokenizer, framed, add_special_tokens=False)


def check_context(
    loaded: LoadedModel,
    prompt_tokens: int,
    max_new_tokens: int,
    *,
    advice: str = "shorten the document",
) -> None:
    """Refuse a prompt and answer longer than the model was trained for.

    Args:
        loaded: the model.
        prompt_tokens: length of the prompt.
        max_new_tokens: longest answer (tokens).
        advice: what to do where they do not fit, for the message.

    Raises:
        ValueError: when prompt and answer exceed the model's trained context, or when no token
            may be generated.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; expected at least 1 token")
    limit = loaded.trained_context
    if limit is not None and prompt_tokens + max_new_tokens > limit:
        raise ValueError(
            f"the prompt has {prompt_tokens:,} tokens and the answer up to {max_new_tokens:,};"
            f" {loaded.name} was trained to {limit:,}: {advice}"
        )


def generate_answer(
    loaded: LoadedModel,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    chunk: int | None = None,
    on_prefill: Callable[[int], None] | None = None,
    on_text: Callable[[str], None] | None = None,
    graph: bool | None = None,
) -> Generation:
    """Answer greedily with the model as it is, adapted or not.

    Args:
        loaded: model and tokenizer.
        input_ids: the prompt, ``[1, tokens]``.
        max_new_tokens: longest answer (tokens).
        chunk: prompt tokens per forward pass; ``None``: the whole prompt in one.
        on_prefill: called after each pass over the prompt with the tokens done so far.
        on_text: called with each piece of the answer as it comes.
        graph: whether decoding runs from a CUDA graph; ``None``: it does on a GPU, if the model is
            adapted and can.

    Raises:
        ValueError: for a prompt that does not fit the model, see :func:`check_context`, or the
            device's memory.
    """
    prompt_tokens = input_ids.shape[1]
    check_context(loaded, prompt_tokens, max_new_tokens)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1 prompt token")
    options: dict[str, Any] = {}
    if _runs_from_a_graph(loaded.model) if graph is None else graph:
        options["custom_generate"] = graph_sample
    streamer = _Stopwatch(loaded.tokenizer, on_text)
    with (
        explain_out_of_memory(
            f"a prompt of {prompt_tokens:,} tokens, {chunk or prompt_tokens:,} a pass",
            f"{'lower' if chunk else 'set'} --chunk, shorten the prompt, or take a recipe that"
            " frees keys and values (swaa tune --budget kv=1/2 finds one)",
        ),
        torch.inference_mode(),
        _reporting(loaded.model, prompt_tokens, on_prefill),
    ):
        streamer.start()
        model: Any = loaded.model  # its class types `generate` as a tensor
        output = model.generate(
            input_ids.to(execution_device(loaded.model)),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            prefill_chunk_size=chunk,
            streamer=streamer,
            return_dict_in_generate=True,
            **options,
        )
    new_ids = output.sequences[0, prompt_tokens:]
    held, peak = cache_bytes(cache_of(output))
    return Generation(
        text=_decode(loaded.tokenizer, new_ids),
        prompt_tokens=prompt_tokens,
        new_tokens=len(new_ids),
        first_token_s=streamer.first_token_s,
        tokens_per_s=streamer.tokens_per_s,
        kv_bytes=held,
        peak_kv_bytes=peak,
    )


def cache_bytes(cache: DynamicCache) -> tuple[int, int]:
    """Bytes of keys and values that a cache holds, and the most it held at once."""
    if isinstance(cache, SWAACache):
        return cache.kv_bytes(), cache.peak_kv_bytes
    held = sum(layer_bytes(layer) for layer in cache.layers)  # pyright: ignore[reportArgumentType]
    return held, held  # a stock cache only grows


def _runs_from_a_graph(model: PreTrainedModel) -> bool:
    if model.device.type != "cuda" or not is_adapted(model):
        return False
    try:
        require_fast(model)
    except UnsupportedModelError:
        return False
    return True


class Pieces(TextStreamer):
    """Calls ``on_text``, if given, with each piece of an answer as it comes."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None] | None
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by Transformers with each piece."""
        del stream_end
        if self._on_text is not None and text:
            self._on_text(text)


class _Stopwatch(Pieces):
    """Notes when the first and the last token came, too."""

    _started = 0.0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._times: list[float] = []

    def start(self) -> None:
        self._started = time.perf_counter()

    def put(self, value: Tensor) -> None:
        # The first call brings the prompt. The ids of later calls are already on the CPU, so the
        # device has finished them.
        if not self.next_tokens_are_prompt:
            self._times.append(time.perf_counter())
        super().put(value)

    @property
    def first_token_s(self) -> float:
        return self._times[0] - self._started

    @property
    def tokens_per_s(self) -> float | None:
        if len(self._times) < 2:
            return None
        return (len(self._times) - 1) / (self._times[-1] - self._times[0])


@contextmanager
def _reporting(
    model: PreTrainedModel, prompt_tokens: int, on_prefill: Callable[[int], None] | None
) -> Iterator[None]:
    """Count the prompt's tokens as they go through the model, by a hook removed at the end."""
    if on_prefill is None:
        yield
        return
    done = 0

    def count(_model: Any, _args: Any, kwargs: dict[str, Any], _output: Any) -> None:
        nonlocal done
        if done < prompt_tokens:
            done += kwargs["input_ids"].shape[1]
            on_prefill(done)

    hook = model.register_forward_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool
) -> Tensor:
    # verbose=False: the length is checked against the model, with a message of our own.
    encoded = tokenizer(
        text, add_special_tokens=add_special_tokens, return_tensors="pt", verbose=False
    )
    ids = encoded["input_ids"]
    assert isinstance(ids, Tensor)
    return ids


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text.strip()
