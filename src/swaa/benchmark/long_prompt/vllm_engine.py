"""vLLM in the long-prompt benchmark."""

from __future__ import annotations

import time
from typing import Any

from swaa.benchmark.long_prompt.requests import random_prompt, timings


def start(setting: dict[str, Any]) -> Any:
    """An ``LLM`` for a setting (see :class:`swaa.benchmark.long_prompt.measure.Setting`)."""
    from vllm import LLM

    return LLM(
        setting["model"],
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype=setting["dtype"],
        seed=0,
        max_model_len=setting["max_tokens"],
        max_num_seqs=4,
        max_num_batched_tokens=setting["chunk_tokens"],
        enable_prefix_caching=False,
        disable_log_stats=False,
        gpu_memory_utilization=0.05,
        kv_cache_memory_bytes=setting["kv_bytes"],
        enforce_eager=setting["eager"],
        compilation_config={"cudagraph_capture_sizes": [1, 2, 4]},
        additional_config={} if setting["swaa"] is None else {"swaa": setting["swaa"]},
    )


def memory(llm: Any) -> dict[str, Any]:
    """Its cache: blocks, their tokens, and how many requests of the longest context fit."""
    cache = llm.llm_engine.vllm_config.cache_config
    return {
        "blocks": cache.num_gpu_blocks,
        "block_tokens": cache.block_size,
        "longest_requests": cache.kv_cache_max_concurrency,
    }


def _request(llm: Any, number: int, tokens: int, answer: int) -> None:
    """Queue a prompt of random tokens that no other request shares."""
    from vllm import SamplingParams

    vocabulary = llm.llm_engine.vllm_config.model_config.get_vocab_size()
    prompt = random_prompt(number, tokens, vocabulary)
    sampling = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, detokenize=False)
    llm.llm_engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)


def answer(
    llm: Any, number: int, prompt: int, tokens: int, *, watch_memory: bool = False
) -> dict[str, Any]:
    """Seconds to the first token and from token to token of one request served alone."""
    begin = time.perf_counter()
    _request(llm, number, prompt, tokens)
    begin_of_steps = time.perf_counter()
    times: list[float] = []
    ids: list[int] = []
    usage = None
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            now, new = time.perf_counter(), len(output.outputs[0].token_ids)
            times += [now] * (new - len(ids))
            ids = list(output.outputs[0].token_ids)
        if watch_memory and usage is None and len(ids) > tokens // 2:
            usage = _usage(llm)
    return {
        "prompt": prompt,
        "answer": len(ids),
        "queueing": begin_of_steps - begin,
        **timings(times, begin_of_steps),
        "usage": usage,
        "ids": ids[:8],
    }


def _usage(llm: Any) -> float | None:
    """Share of the cache's blocks that are in use."""
    for metric in llm.llm_engine.get_metrics():
        if metric.name == "vllm:kv_cache_usage_perc":
            return metric.value
    return None


def traffic(llm: Any, setting: dict[str, Any]) -> dict[str, Any]:
    """Seconds for several requests at once."""
    begin = time.perf_counter()
    for number in range(setting["requests"]):
        _request(llm, 100 + number, setting["traffic_prompt"], setting["traffic_answer"])
    tokens = 0
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            if output.finished:
                tokens += setting["traffic_prompt"] + len(output.outputs[0].token_ids)
    seconds = time.perf_counter() - begin
    return {"requests": setting["requests"], "seconds": seconds, "tokens": tokens}
