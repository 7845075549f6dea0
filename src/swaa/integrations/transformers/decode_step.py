"""One decoding step of a model, captured once as a CUDA graph and replayed for every token.

A forward pass of one token launches hundreds of small kernels; the host takes several times as long
to launch them as the GPU to run them. Everything a step needs is in tensors that the step itself
advances (:class:`~swaa.integrations.transformers.static_cache.DecodeRows`), so a replay is one
launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swaa.integrations.transformers.cache_name import cache_argument
from swaa.integrations.transformers.mask import announce
from swaa.integrations.transformers.static_cache import StaticSWAACache


class DecodeStep:
    """Computes the next token of every sequence; greedily, unless ``tokens`` is overwritten.

    Without a GPU the same step runs without a graph.

    Args:
        model: in evaluation mode.
        cache: a cache that holds the prompt.
        tokens: int64 ``[batch]``, the first generated tokens.
        starts: int32 ``[batch]``, slot of each prompt's first real token; None: no padding.

    Attributes:
        tokens: int64 ``[batch]``, what the next step reads; write other tokens into it to
            override the greedy choice.
        logits: ``[batch, vocabulary]`` of the last step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: StaticSWAACache,
        tokens: Tensor,
        *,
        starts: Tensor | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.tokens = tokens.clone()
        length = cache.get_seq_length()
        first = torch.full_like(tokens, length)
        self._positions = (first if starts is None else first - starts)[:, None]
        self._rows = cache.start_decoding(starts)
        self._graph: torch.cuda.CUDAGraph | None = None
        untyped: Any = model
        with untyped._optimize_model_for_decode():  # generate's own: experts for few tokens
            self.logits = self._forward()  # loads kernels; the next step repeats this pass
            if tokens.is_cuda:
                self._capture()

    def __call__(self) -> Tensor:
        """Read ``tokens``, store their keys, choose the next tokens.

        Returns:
            ``tokens`` itself: the next step overwrites it.
        """
        if self._graph is not None:
            self._graph.replay()
        else:
            self._run()
        return self.tokens

    def _forward(self) -> Tensor:
        announce(self._rows)
        model: Any = self.model
        output = model(
            input_ids=self.tokens[:, None],
            attention_mask=self._rows,
            position_ids=self._positions,
            use_cache=True,
            logits_to_keep=1,
            **cache_argument(self.cache),
        )
        return output.logits[:, -1]

    def _run(self) -> None:
        self.logits = self._forward()
        self.tokens.copy_(self.logits.argmax(-1))
        self._positions += 1
        self._rows.advance()

    def _capture(self) -> None:
        # Run once on the capture's stream before the capture: what is made on first use
        # (workspaces, kernels) must not be made inside it.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._run()
        self._graph = graph
