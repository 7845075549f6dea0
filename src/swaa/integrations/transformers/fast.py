"""Generation as fast as the model allows: chunked prefill, then decoding from a CUDA graph.

It serves models whose layers all keep keys and values in the ordinary way; others are refused, and
``model.generate`` serves them. ``model.generate(..., custom_generate=graph_sample)`` runs an
adapted model this way, with the processors, stopping criteria and streamers of ``generate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.utils import GenerateDecoderOnlyOutput

from swaa.config import LayerPlan
from swaa.integrations.transformers.cache_name import cache_argument, cache_in
from swaa.integrations.transformers.decode_step import DecodeStep
from swaa.integrations.transformers.mask import RowInfo, announce, left_padding
from swaa.integrations.transformers.sequences import tie, tied
from swaa.integrations.transformers.static_cache import StaticSWAACache
from swaa.integrations.transformers.support import UnsupportedModelError, find_layers
from swaa.phase import Phase, current_phase

CHUNK = 8192
"""Prompt tokens of a forward pass: enough to fill a GPU, few enough to keep its buffers small."""


def require_fast(model: PreTrainedModel) -> None:
    """Raise unless a static cache can serve every layer.

    Raises:
        UnsupportedModelError: with the reason.
    """
    layers = find_layers(model)
    if len(layers.full) != layers.depth:
        other = next(i for i in range(layers.depth) if i not in layers.full)
        raise UnsupportedModelError(
            f"layer {other} of {type(model).__name__} slides already or has no attention, for which"
            " there is no static cache; use the ordinary generate"
        )


def plans_of(model: PreTrainedModel) -> tuple[LayerPlan, ...]:
    """The plan of each layer of an adapted model.

    Raises:
        ValueError: when the model is not adapted.
    """
    generate = vars(model).get("generate")
    if generate is None:
        raise ValueError("the model is not adapted: call swaa.adapt(model)")
    return generate.plans


def prefill(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: StaticSWAACache,
    *,
    chunk: int | None = CHUNK,
    starts: Tensor | None = None,
) -> Tensor:
    """Compute a prompt; the host does not wait for the device.

    Args:
        model: adapted, in evaluation mode.
        input_ids: ``[batch, tokens]``, padded on the left.
        cache: empty.
        chunk: tokens of one forward pass; None: all in one.
        starts: int32 ``[batch]``, slot of each first real token; None: no padding.

    Returns:
        Logits of the last row, ``[batch, vocabulary]``.
    """
    batch, tokens = input_ids.shape
    device = input_ids.device
    phase = Phase(prompt_length=tokens, generating=True)
    logits = None
    for first in range(0, tokens, chunk or tokens):
        ids = input_ids[:, first : first + (chunk or tokens)]
        rows = RowInfo(
            batch=batch,
            queries=ids.shape[1],
            q_offset=first,
            starts=starts,
            phase=phase,
            device=device,
        )
        announce(rows)
        positions = torch.arange(first, first + ids.shape[1], device=device)[None]
        if starts is not None:
            positions = (positions - starts[:, None]).clamp(min=0)
        call: Any = model
        logits = call(
            input_ids=ids,
            attention_mask=rows,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **cache_argument(cache),
        ).logits
    assert logits is not None
    return logits[:, -1]


@torch.no_grad()
def graph_sample(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    streamer: Any = None,
    **model_kwargs: Any,
) -> GenerateDecoderOnlyOutput | Tensor:
    """A decoding method for ``generate(custom_generate=graph_sample)``: greedy or sampling.

    Args:
        model: adapted.
        input_ids: ``[batch, tokens]``.
        logits_processor: as ``generate`` made it.
        stopping_criteria: likewise.
        generation_config: likewise.
        streamer: takes each token as it comes.
        model_kwargs: ``attention_mask``, if prompts are padded on the left.

    Raises:
        ValueError: for beams, for a kept cache, for a model that is not adapted.
    """
    require_fast(model)
    plans = plans_of(model)
    _check_options(generation_config, model_kwargs)
    mask = model_kwargs.get("attention_mask")
    starts = None if mask is None else left_padding(mask)
    prompt_tokens = input_ids.shape[1]
    new_tokens = generation_config.max_length - prompt_tokens
    cache = StaticSWAACache(model.config, plans, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    sequences = tied(cache_in(model_kwargs))
    if sequences is not None:
        tie(cache, sequences)
    chunk = generation_config.prefill_chunk_size or CHUNK
    logits = prefill(model, input_ids, cache, chunk=chunk, starts=starts)
    eos = any(hasattr(criteria, "eos_token_id") for criteria in stopping_criteria)
    loop = _Loop(input_ids, logits_processor, generation_config, pad=eos)
    step = None
    while True:
        tokens = loop.choose(logits)
        if streamer is not None:
            streamer.put(tokens.cpu())
        if loop.finished(stopping_criteria):
            break
        if step is None:
            step = DecodeStep(model, cache, tokens, starts=starts)
        else:
            step.tokens.copy_(tokens)
        step()
        logits = step.logits
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return loop.ids
    return loop.output(cache)


class _Loop:
    """The chosen tokens, and what ``generate`` was asked to keep from each step."""

    def __init__(
        self, input_ids: Tensor, logits_processor: Any, options: Any, *, pad: bool
    ) -> None:
        self.ids = input_ids
        self._processor = logits_processor
        self._options = options
        self._padding = options._pad_token_tensor if pad else None
        self._running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        self._scores: list[Tensor] = []
        self._logits: list[Tensor] = []

    def choose(self, logits: Tensor) -> Tensor:
        """The next tokens ``[batch]`` for logits ``[batch, vocabulary]``; appended to ``ids``."""
        logits = logits.to(torch.float32, copy=True)
        scores = self._processor(self.ids, logits)
        if self._options.output_logits:
            self._logits.append(logits)
        if self._options.output_scores:
            self._scores.append(scores)
        if self._options.do_sample:
            tokens = torch.multinomial(scores.softmax(-1), 1)[:, 0]
        else:
            tokens = scores.argmax(-1)
        if self._padding is not None:
            tokens = torch.where(self._running, tokens, self._padding.to(tokens.device))
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=-1)
        return tokens

    def finished(self, stopping_criteria: Any) -> bool:
        """Whether every sequence has ended; here the host waits, once per token."""
        self._running &= ~stopping_criteria(self.ids, None)
        return not bool(self._running.any())

    def output(self, cache: StaticSWAACache) -> GenerateDecoderOnlyOutput:
        """The output that ``generate`` returns with ``return_dict_in_generate``."""
        return GenerateDecoderOnlyOutput(
            sequences=self.ids,  # pyright: ignore[reportArgumentType]
            scores=_tuple(self._scores),
            logits=_tuple(self._logits),
            **cache_argument(cache),
        )


def _tuple(kept: Sequence[Tensor]) -> Any:
    return tuple(kept) if kept else None


def _check_options(generation_config: Any, model_kwargs: dict[str, Any]) -> None:
    if generation_config.num_beams != 1:
        raise ValueError("graph_sample decodes greedily or by sampling; it has no beams")
    cache = cache_in(model_kwargs)
    if cache is not None and cache.get_seq_length():
        raise ValueError("graph_sample computes the whole prompt; pass no cache")
    if model_kwargs.get("inputs_embeds") is not None:
        raise ValueError("graph_sample takes input_ids; inputs_embeds have no chunks")
    if current_phase().full:
        raise ValueError("graph_sample slides; full_attention() is for the ordinary generate")
