"""Any OpenAI-compatible endpoint as engine: several prompts at once, with useful retries."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from swaa.evaluation.engines import Reply, Request, Sampling
from swaa.http.endpoint import Endpoint
from swaa.thoughts import hidden_beside_thoughts, without


class OpenAIEngine:
    """Answers through an endpoint, such as a vLLM server that runs swaa's plugin.

    Args:
        endpoint: where to ask.
        api: ``completions`` sends the whole prompt as token ids, exactly as a model in this
            process reads it; ``chat`` sends the user's words and leaves the template to the server.
        concurrency: requests in progress at once.
        sampling: draw answers; ``None``: answer greedily.
        tokenizer: the model's; where ``</think>`` is a special token, the server is asked to leave
            such tokens in (``skip_special_tokens``, an option of vLLM and SGLang), and the others
            are removed here. ``None``: as the server decodes.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        api: Literal["completions", "chat"] = "completions",
        concurrency: int = 8,
        sampling: Sampling | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; expected at least 1 prompt")
        self._endpoint = endpoint
        self._api = api
        self._concurrency = concurrency
        self._sampling = sampling
        self._hidden = () if tokenizer is None else hidden_beside_thoughts(tokenizer)

    def describe(self) -> dict[str, Any]:
        """What distinguishes runs with this engine; the server's address does not."""
        return {"engine": "openai", "api": self._api, "served_model": self._endpoint.model}

    def answer(self, batches: Sequence[Sequence[Request]]) -> Iterator[Reply]:
        """Answer all prompts; the server makes batches of its own.

        Raises:
            EndpointError: for the first prompt whose retries failed, after the replies to the
                requests in progress.
        """
        waiting = deque(request for batch in batches for request in batch)
        failed: BaseException | None = None
        with ThreadPoolExecutor(self._concurrency) as pool:
            running: set[Future[Reply]] = set()
            while running or (waiting and failed is None):
                while waiting and failed is None and len(running) < self._concurrency:
                    running.add(pool.submit(self._ask, waiting.popleft()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    if error is None:
                        yield future.result()
                    failed = failed or error
        if failed is not None:
            raise failed

    def _ask(self, request: Request) -> Reply:
        options: dict[str, Any] = {"max_tokens": request.max_new_tokens}
        if self._sampling is not None:
            options["temperature"] = self._sampling.temperature
            options["seed"] = self._sampling.seed_for(request.id)
        if self._hidden:
            options["skip_special_tokens"] = False
        if self._api == "chat":
            said = self._endpoint.chat([{"role": "user", "content": request.content}], **options)
        else:
            # As ids: servers would put a special token before a text that already has it.
            said = self._endpoint.complete(request.ids, **options)
        return Reply(
            id=request.id,
            output=without(said.text, self._hidden),
            first_token_s=said.first_token_s,
            new_tokens=said.new_tokens,
            truncated=said.finish_reason == "length",
        )
