"""A model of this process as engine: adapted in place, prompts in left-padded batches."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from swaa.adaptation import Adaptation, adapt, restore
from swaa.config import SWAAConfig
from swaa.evaluation.engines import Reply, Request, Sampling
from swaa.integrations.transformers.cache import SWAACache
from swaa.integrations.transformers.cache_name import cache_argument
from swaa.memory import explain_out_of_memory
from swaa.models import LoadedModel
from swaa.phase import prompt_length
from swaa.thoughts import spoken

LOWER = "lower --batch-size, set --chunk, or ask for shorter prompts"
"""Advice where prompts do not fit into memory."""


class TransformersEngine:
    """Answers with a loaded model; the model is adapted only inside ``with``.

    Args:
        loaded: model and tokenizer.
        config: how to adapt the model; without a window it is not changed.
        backend: attention backend of the adapted model.
        chunk: prompt tokens per forward pass; ``None``: all in one.
        sampling: draw answers; ``None``: answer greedily.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: SWAAConfig,
        *,
        backend: str = "auto",
        chunk: int | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self._loaded = loaded
        self._config = config
        self._backend = backend
        self._chunk = chunk
        self._sampling = sampling
        self.adaptation: Adaptation | None = None

    def __enter__(self) -> TransformersEngine:
        if self._config.window is not None:
            self.adaptation = adapt(
                self._loaded.model, self._config, backend=self._backend, quiet=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.adaptation is not None:
            restore(self._loaded.model)
            self.adaptation = None

    @property
    def summary(self) -> str:
        """One line: what is active."""
        return self.adaptation.summary if self.adaptation else "full attention, the model as it is"

    def describe(self) -> dict[str, Any]:
        """What distinguishes runs with this engine."""
        return {
            "engine": "transformers",
            "dtype": str(self._loaded.model.dtype).removeprefix("torch."),
            "backend": self._backend,
        }

    def answer(self, batches: Sequence[Sequence[Request]]) -> Iterator[Reply]:
        """Answer one batch after another.

        Raises:
            ValueError: when a batch does not fit into the device's memory.
        """
        for batch in batches:
            longest = max(len(request.ids) for request in batch)
            work = f"{len(batch)} prompts of up to {longest} tokens"
            with explain_out_of_memory(work, LOWER):
                replies = self._generate(batch)
            yield from replies

    def negative_log_likelihoods(self, ids: Sequence[int], *, answer_from: int) -> Tensor:
        """The negative log-likelihood of each token after those before it.

        Args:
            ids: one text.
            answer_from: position of the first token that counts as generated, not as prompt.

        Returns:
            ``[tokens - 1]`` in nats, on the CPU: for the second token, the third and so on.
        """
        model: Any = self._loaded.model
        tokens = torch.tensor([list(ids)], device=model.device)
        plans = self.adaptation.plans if self.adaptation else None
        cache = SWAACache(model.config, plans) if plans else DynamicCache(config=model.config)
        step = self._chunk or 1024  # bounds the logits, the largest tensor of all
        parts = []
        with torch.inference_mode(), prompt_length(answer_from):
            for first in range(0, tokens.shape[1], step):
                chunk = tokens[:, first : first + step]
                logits = model(input_ids=chunk, use_cache=True, **cache_argument(cache)).logits
                targets = tokens[0, first + 1 : first + 1 + chunk.shape[1]]
                rows = logits[0, : len(targets)].float()
                parts.append(torch.nn.functional.cross_entropy(rows, targets, reduction="none"))
        return torch.cat(parts).cpu()

    def read(self, texts: Sequence[tuple[Sequence[int], int]]) -> Iterator[Tensor]:
        """:meth:`negative_log_likelihoods` for each text and where its answer begins."""
        for ids, answer_from in texts:
            work = f"a text of {len(ids)} tokens"
            with explain_out_of_memory(work, "lower --chunk or --lengths"):
                losses = self.negative_log_likelihoods(ids, answer_from=answer_from)
            yield losses

    def _generate(self, batch: Sequence[Request]) -> list[Reply]:
        model: Any = self._loaded.model
        ids, mask = self._padded([request.ids for request in batch])
        watch = _FirstToken()
        started = time.perf_counter()
        with torch.inference_mode(), self._seeded(batch):
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=self._options(batch),
                logits_processor=LogitsProcessorList([watch]),
            )
        rows = output[:, ids.shape[1] :].tolist()
        return [
            self._reply(request, row, watch.at - started)
            for request, row in zip(batch, rows, strict=True)
        ]

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        device = self._loaded.model.device
        return ids.to(device), mask.to(device)

    def _options(self, batch: Sequence[Request]) -> Any:
        options: Any = copy.deepcopy(self._loaded.model.generation_config)
        options.max_length = None
        options.update(
            max_new_tokens=max(request.max_new_tokens for request in batch),
            prefill_chunk_size=self._chunk,
            pad_token_id=self._pad_id,
            do_sample=self._sampling is not None,
            # A checkpoint's own options would cause warnings, or narrow what is drawn from.
            temperature=self._sampling.temperature if self._sampling else None,
            top_k=0 if self._sampling else None,
            top_p=None,
            min_p=None,
        )
        return options

    @contextmanager
    def _seeded(self, batch: Sequence[Request]) -> Iterator[None]:
        """Draw with the batch's own seed, and restore the random state afterwards."""
        if self._sampling is None:
            yield
            return
        device = self._loaded.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self._sampling.seed_for(*(request.id for request in batch)))
            yield

    def _reply(self, request: Request, row: list[int], first_token_s: float) -> Reply:
        row = row[: request.max_new_tokens]
        ends = self._end_ids
        end = next((place for place, token in enumerate(row) if token in ends), None)
        new = row if end is None else row[: end + 1]
        return Reply(
            id=request.id,
            output=spoken(self._loaded.tokenizer, new),
            first_token_s=first_token_s,
            new_tokens=len(new),
            truncated=end is None,
            ids=tuple(new),
        )

    @property
    def _end_ids(self) -> set[int]:
        model: Any = self._loaded.model
        tokenizer: Any = self._loaded.tokenizer
        ends = model.generation_config.eos_token_id
        if ends is None:
            ends = tokenizer.eos_token_id
        if ends is None:
            return set()
        return set(ends) if isinstance(ends, (list, tuple)) else {ends}

    @property
    def _pad_id(self) -> int:
        tokenizer: Any = self._loaded.tokenizer
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return next(token for token in known if token is not None)


class _FirstToken(LogitsProcessor):
    """Records when the first token's logits exist."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.at:
            if scores.is_cuda:
                torch.cuda.synchronize(scores.device)
            self.at = time.perf_counter()
        return scores
