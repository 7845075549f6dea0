"""One vLLM engine of the long-prompt benchmark: start, wait for its turn, answer one long prompt.

Runs in its own process, ``python -m swaa.benchmark.long_prompt.engine SETTING FOLDER``. What it
measures goes to ``FOLDER/<name>.jsonl``, one line per event, as it happens.
"""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

WAIT_SECONDS = 0.2


def main(setting: dict[str, Any], folder: Path) -> None:
    """Serve a setting (see :class:`swaa.benchmark.long_prompt.measure.Setting`)."""
    # When ended early, it still ends its own engine processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    report = _Report(folder / f"{setting['name']}.jsonl")
    begin = time.perf_counter()
    llm = _start(setting)
    report("ready", seconds=time.perf_counter() - begin, **_memory(llm))
    _wait(folder / f"{setting['name']}.go")
    prompt = setting["prompt_tokens"]
    # The first pass compiles and loads what only long prompts need, and is not timed.
    report("warm", **_answer(llm, 0, prompt, setting["answer_tokens"], watch_memory=True))
    for number in range(setting["repeats"]):
        report("timed", **_answer(llm, 1 + number, prompt, setting["answer_tokens"]))
    if setting["requests"]:
        report("traffic", **_traffic(llm, setting))
    report("done")


class _Report:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: str, **values: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")


def _start(setting: dict[str, Any]) -> Any:
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


def _memory(llm: Any) -> dict[str, Any]:
    cache = llm.llm_engine.vllm_config.cache_config
    return {
        "blocks": cache.num_gpu_blocks,
        "block_tokens": cache.block_size,
        "longest_requests": cache.kv_cache_max_concurrency,
    }


def _wait(turn: Path) -> None:
    while not turn.exists():
        time.sleep(WAIT_SECONDS)


def _request(llm: Any, number: int, tokens: int, answer: int) -> None:
    """Queue a prompt of random tokens that no other request shares."""
    import random

    from vllm import SamplingParams

    rng = random.Random(number)
    vocabulary = llm.llm_engine.vllm_config.model_config.get_vocab_size()
    prompt = [rng.randrange(vocabulary) for _ in range(tokens)]
    sampling = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, detokenize=False)
    llm.llm_engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)


def _answer(
    llm: Any, number: int, prompt: int, answer: int, *, watch_memory: bool = False
) -> dict[str, Any]:
    """Seconds to the first token and from token to token of one request served alone."""
    begin = time.perf_counter()
    _request(llm, number, prompt, answer)
    begin_of_steps = time.perf_counter()
    times: list[float] = []
    ids: list[int] = []
    usage = None
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            now, new = time.perf_counter(), len(output.outputs[0].token_ids)
            times += [now] * (new - len(ids))
            ids = list(output.outputs[0].token_ids)
        if watch_memory and usage is None and len(ids) > answer // 2:
            usage = _usage(llm)
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return {
        "prompt": prompt,
        "answer": len(ids),
        "first": times[0] - begin_of_steps,
        "queueing": begin_of_steps - begin,
        "each": (times[-1] - times[0]) / max(1, len(steps)),
        "each_p50": statistics.median(steps) if steps else None,
        "usage": usage,
        "ids": ids[:8],
    }


def _usage(llm: Any) -> float | None:
    """Share of the cache's blocks that are in use."""
    for metric in llm.llm_engine.get_metrics():
        if metric.name == "vllm:kv_cache_usage_perc":
            return metric.value
    return None


def _traffic(llm: Any, setting: dict[str, Any]) -> dict[str, Any]:
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


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
