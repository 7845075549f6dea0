"""A real vLLM engine in this process, and what judges its tokens."""

import functools
import gc
import os

import torch

from swaa.heads import HeadSelection
from tests.served import (
    ON_GPU,
    STOCK_TOLERANCE,
    TOLERANCE,
    VOCABULARY,
    Judge,
    prompts_of,
    save_model,
)

__all__ = [
    "ON_GPU",
    "STOCK_TOLERANCE",
    "TOLERANCE",
    "VOCABULARY",
    "Judge",
    "prompts_of",
    "save_model",
]

BLOCK = 32
CHUNK = 64
V2 = ON_GPU or os.environ.get("SWAA_TEST_RUNNER") == "v2"
# Decode batches replay CUDA graphs; the rest is not compiled, which would take minutes.
GPU_OPTIONS = {
    "enforce_eager": False,
    "compilation_config": {
        "mode": 0,
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": [1, 2, 4, 8],
    },
    # Fixed, so that engines may share a GPU.
    "gpu_memory_utilization": 0.02,
    "kv_cache_memory_bytes": 1 << 28,
}
OPTIONS = {
    "dtype": "float32",
    "skip_tokenizer_init": True,
    "enforce_eager": True,
    "block_size": BLOCK,
    "max_model_len": 2048,
    "max_num_batched_tokens": CHUNK,
    "num_gpu_blocks_override": 400,
    **(GPU_OPTIONS if ON_GPU else {}),
}
"""Of an engine, unless a test says otherwise."""


def folder_for(checkpoint, config):
    """A model for a configuration: one of four KV heads where it names some, else of two."""
    return checkpoint(kv_heads=4) if isinstance(config.full_decode, HeadSelection) else checkpoint()


class Engine:
    """An ``LLM`` with the settings of these tests; a context manager that ends it."""

    def __init__(self, folder, swaa=None, **options):
        from vllm.model_executor.models import registry
        from vllm.platforms import current_platform

        from vllm import LLM

        if current_platform.is_cpu():
            _scan_once(type(current_platform))
            registry._run_in_subprocess = _run
        configured = {} if swaa is None else {"swaa": swaa}
        # Else each of vLLM's collections, when it starts and ends, looks at all that is imported.
        gc.freeze()
        try:
            self.llm = LLM(folder, **{"additional_config": configured, **OPTIONS, **options})
        except BaseException:
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()  # else the next engine takes its groups for its own
            raise
        self.scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        self.manager = self.scheduler.kv_cache_manager
        self.preemptions = 0
        preempt = self.scheduler._preempt_request

        def counting(*args, **kwargs):
            self.preemptions += 1
            return preempt(*args, **kwargs)

        self.scheduler._preempt_request = counting

    def __enter__(self):
        self.free_at_start = self.free_blocks()
        return self

    def __exit__(self, *_error):
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm, self.scheduler, self.manager
        cleanup_dist_env_and_memory()  # unfreezes and collects

    def free_blocks(self):
        return self.manager.block_pool.get_num_free_blocks()

    def run(self, prompts, max_tokens=24, **options):
        """Requests, all at once, greedy by default; vLLM's outputs in the order of the prompts."""
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            sampling(max_tokens=max_tokens, **options),
            use_tqdm=False,
        )
        assert self.free_blocks() == self.free_at_start, "blocks leaked"
        return outputs

    def answers(self, prompts, max_tokens=24, **options):
        """The one answer to each prompt: ``token_ids`` and ``logprobs``."""
        return [output.outputs[0] for output in self.run(prompts, max_tokens, **options)]

    def one_after_another(self, prompts, **options):
        """Answers to prompts that come a step apart, see :meth:`in_turn`."""
        return [output.outputs[0] for output in self.in_turn(prompts, **options)]

    def in_turn(self, prompts, **options):
        """vLLM's outputs for prompts that come a step apart, so that later ones are computed beside
        rows that earlier ones generate. A prompt may also be in vLLM's own form."""
        core, outputs = self.llm.llm_engine, {}
        for number, prompt in enumerate(prompts):
            given = prompt if isinstance(prompt, dict) else {"prompt_token_ids": prompt}
            core.add_request(str(number), given, sampling(**options))
            outputs |= _finished(core.step())
        while core.has_unfinished_requests():
            outputs |= _finished(core.step())
        assert self.free_blocks() == self.free_at_start, "blocks leaked"
        return [outputs[str(number)] for number in range(len(prompts))]

    def forget(self):
        """Empty the prefix cache."""
        assert self.llm.reset_prefix_cache()


@functools.cache
def _scan_once(platform):
    """Scan for kernels to replace once per process: a second scan fails on what drafts import."""
    scan = functools.cache(platform.register_triton_kernel_overrides)
    platform.register_triton_kernel_overrides = staticmethod(scan)


def _run(inspect):
    """Let vLLM look at a model's class here; its own process for that imports vLLM anew."""
    return inspect()


def _finished(outputs):
    return {output.request_id: output for output in outputs if output.finished}


def sampling(**options):
    from vllm import SamplingParams

    defaults = {"temperature": 0, "detokenize": False, "ignore_eos": True, "logprobs": 0}
    return SamplingParams(**{**defaults, **options})


def generating_judge(folder):
    """Compares an answer with that of ``generate`` of the adapted model, its prompt cut alike."""
    from transformers import AutoModelForCausalLM

    import swaa

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def check(prompt, answer, *, config, chunk, near=TOLERANCE, apart=0):
        swaa.adapt(model, config, quiet=True)
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            max_new_tokens=len(answer.token_ids),
            do_sample=False,
            prefill_chunk_size=chunk,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert list(answer.token_ids) == output.sequences[0, len(prompt) :].tolist()
        wanted = torch.stack(output.logits)[:, 0].log_softmax(-1).amax(-1)
        said = zip(answer.token_ids, answer.logprobs, strict=True)
        found = [one[token].logprob for token, one in said]
        errors = (torch.tensor(found) - wanted).abs()
        assert int((errors >= near).sum()) <= apart, errors

    return check
