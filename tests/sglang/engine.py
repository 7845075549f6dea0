"""A real SGLang engine, whose scheduler is a process of its own."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

from tests.served import ON_GPU
from tests.sglang.forked import forked_processes, spared_server

CHUNK = 64
BACKEND = "swaa_triton" if ON_GPU else "swaa_torch_native"
GPU_OPTIONS = {
    "sampling_backend": "pytorch",
    "cuda_graph_backend_prefill": "disabled",
    "cuda_graph_max_bs_decode": 8,
    "mem_fraction_static": 0.3,
}
OPTIONS = {
    "device": "cuda" if ON_GPU else "cpu",
    "dtype": "float32",
    "skip_tokenizer_init": True,
    "attention_backend": BACKEND,
    "radix_cache_backend": "swaa",
    "context_length": 2048,
    "max_total_tokens": 4096,
    "chunked_prefill_size": CHUNK,
    "max_running_requests": 8,
    "log_level": "warning",
    "random_seed": 0,
    **(GPU_OPTIONS if ON_GPU else {}),
}
"""Of an engine, unless a test says otherwise."""


class Engine:
    """An ``sglang.Engine`` with the settings of these tests; a context manager that ends it.

    ``inside`` is for the plugin in tests/sglang/inside. ``spawned``: its processes begin from
    nothing, as where SGLang runs; what SGLang reads while it is imported then counts.
    """

    def __init__(self, folder, swaa=None, inside=None, *, spawned=ON_GPU, **options):
        import sglang

        self.log = Path(tempfile.mkdtemp(), "batches.jsonl")
        os.environ["SWAA_TESTS_INSIDE"] = json.dumps({"log": str(self.log), **(inside or {})})
        overrides = {} if swaa is None else {"swaa": swaa}
        given = {**OPTIONS, "json_model_override_args": json.dumps(overrides), **options}
        start = contextlib.nullcontext if spawned else forked_processes
        try:
            with start():
                self.engine = sglang.Engine(model_path=folder, **given)
        finally:
            del os.environ["SWAA_TESTS_INSIDE"]

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        with spared_server():
            self.engine.shutdown()

    def run(self, prompts, max_tokens=24, **sampling):
        """Requests, all at once, greedy by default; SGLang's outputs in the prompts' order."""
        sampling = {"temperature": 0, "ignore_eos": True, **sampling}
        return self.engine.generate(
            input_ids=prompts,
            sampling_params={**sampling, "max_new_tokens": max_tokens},
            return_logprob=True,
        )

    def answers(self, prompts, max_tokens=24, **sampling):
        """The one answer to each prompt: ``token_ids``, ``logprobs`` and ``cached`` tokens."""
        return [answer_of(output) for output in self.run(prompts, max_tokens, **sampling)]

    def forget(self):
        """Empty the radix cache."""
        self.engine.flush_cache()
        self.batches()

    def batches(self):
        """What each batch since the last call held."""
        found = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        return [json.loads(line) for line in found]


def answer_of(output):
    """SGLang's output as the judge reads it."""
    ids, meta = output["output_ids"], output["meta_info"]
    said = [value for value, *_ in meta["output_token_logprobs"]]
    return SimpleNamespace(
        token_ids=ids,
        logprobs=[
            {token: SimpleNamespace(logprob=value)} for token, value in zip(ids, said, strict=True)
        ],
        cached=meta.get("cached_tokens"),
    )
