"""SGLang in the long-prompt benchmark."""

from __future__ import annotations

import json
import time
from typing import Any

from swaa.benchmark.long_prompt.requests import random_prompt, timings

GIB = 1 << 30


def start(setting: dict[str, Any]) -> Any:
    """An ``Engine`` for a setting (see :class:`swaa.benchmark.long_prompt.measure.Setting`)."""
    import sglang

    tiny = setting["eager"]
    stock = "torch_native" if tiny else "triton"
    options: dict[str, Any] = {"attention_backend": setting["attention"] or stock}
    if setting["swaa"] is not None:
        options = {
            "attention_backend": f"swaa_{stock}",
            "radix_cache_backend": "swaa",
            "json_model_override_args": json.dumps({"swaa": setting["swaa"]}),
        }
    if tiny:
        options |= {"device": "cpu", "max_total_tokens": 2 * setting["max_tokens"]}
    else:
        # Graphs of decode batches only: prompts come in few, long chunks.
        options |= {"cuda_graph_backend_prefill": "disabled", "cuda_graph_max_bs_decode": 4}
    return sglang.Engine(
        model_path=setting["model"],
        load_format="dummy",
        skip_tokenizer_init=True,
        sampling_backend="pytorch",
        dtype=setting["dtype"],
        random_seed=0,
        context_length=setting["max_tokens"],
        max_running_requests=4,
        chunked_prefill_size=setting["chunk_tokens"],
        disable_radix_cache=True,
        mem_fraction_static=setting["memory_share"],
        log_level="info",
        **options,
    )


def memory(llm: Any) -> dict[str, Any]:
    """Its KV memory: tokens, bytes."""
    info = llm.get_server_info()
    used = info["internal_states"][0].get("memory_usage", {})
    return {
        "kv_tokens": info["max_total_num_tokens"],
        "kv_bytes": round(used["kvcache"] * GIB) if used.get("kvcache") else None,
    }


def answer(
    llm: Any, number: int, prompt: int, tokens: int, *, watch_memory: bool = False
) -> dict[str, Any]:
    """Seconds to the first token and from token to token of one request served alone."""
    del watch_memory  # SGLang does not say what is in use
    ids = _prompt(llm, number, prompt)
    begin = time.perf_counter()
    times: list[float] = []
    made: list[int] = []
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    for output in llm.generate(input_ids=ids, sampling_params=sampling, stream=True):
        now, new = time.perf_counter(), output["meta_info"]["completion_tokens"]
        times += [now] * (new - len(times))
        made += output["output_ids"]
    return {
        "prompt": prompt,
        "answer": len(times),
        "queueing": 0.0,
        **timings(times, begin),
        "usage": None,
        "ids": made[:8],
    }


def traffic(llm: Any, setting: dict[str, Any]) -> dict[str, Any]:
    """Seconds for several requests at once."""
    size, count = setting["traffic_prompt"], setting["requests"]
    prompts = [_prompt(llm, 100 + number, size) for number in range(count)]
    sampling = {
        "temperature": 0,
        "max_new_tokens": setting["traffic_answer"],
        "ignore_eos": True,
    }
    begin = time.perf_counter()
    outputs = llm.generate(input_ids=prompts, sampling_params=sampling)
    seconds = time.perf_counter() - begin
    made = sum(output["meta_info"]["completion_tokens"] for output in outputs)
    return {"requests": count, "seconds": seconds, "tokens": count * size + made}


def _prompt(llm: Any, number: int, tokens: int) -> list[int]:
    return random_prompt(number, tokens, llm.tokenizer_manager.model_config.vocab_size)
