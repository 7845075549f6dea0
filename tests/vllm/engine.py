"""A real vLLM engine in this process, and the judge of its tokens: a model under loop masks."""

import contextlib
import copy
import gc
import os

import torch

from tests.integrations.families import tiny_model
from tests.integrations.loop_model import build_masks, loop_logits, positions, rows_of
from tests.vllm.routers import as_routed

BLOCK = 32
CHUNK = 64
VOCABULARY = 97
ON_GPU = os.environ.get("SWAA_TEST_DEVICE") == "cuda"
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
TOLERANCE = 1e-3 if ON_GPU else 2e-4
# vLLM's stock Triton kernels, which full layers run on here, round float32 to TF32.
STOCK_TOLERANCE = 5e-2 if ON_GPU else TOLERANCE


def save_model(folder, family, **extra):
    """Save a tiny random float32 model; ``extra`` goes into its config.json."""
    torch.manual_seed(0)
    # Heads of 32 numbers: the smallest that vLLM's own CPU attention serves.
    sizes = {"hidden_size": 128, "head_dim": 32, "max_position_embeddings": 8192}
    model = tiny_model(family, initializer_range=0.2, **sizes)
    for name, value in extra.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    return str(folder)


def prompts_of(*lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


class Engine:
    """An ``LLM`` with the settings of these tests; a context manager that ends it."""

    def __init__(self, folder, swaa=None, **options):
        from vllm.platforms import current_platform

        from vllm import LLM

        configured = {} if swaa is None else {"swaa": swaa}
        try:
            self.llm = LLM(folder, **{"additional_config": configured, **OPTIONS, **options})
        except BaseException:
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()  # else the next engine takes its groups for its own
            raise
        if current_platform.is_cpu():
            # Once per process: its second scan fails on objects that drafting imports.
            type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)
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
        cleanup_dist_env_and_memory()
        gc.collect()

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

    def forget(self):
        """Empty the prefix cache."""
        assert self.llm.reset_prefix_cache()


def sampling(**options):
    from vllm import SamplingParams

    defaults = {"temperature": 0, "detokenize": False, "ignore_eos": True, "logprobs": 0}
    return SamplingParams(**{**defaults, **options})


def generating_judge(folder):
    """Compares an answer with that of ``generate`` of the adapted model, its prompt cut alike."""
    from transformers import AutoModelForCausalLM

    import swaa

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def check(prompt, answer, *, config, chunk):
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
        assert (torch.tensor(found) - wanted).abs().max() < TOLERANCE

    return check


class Judge:
    """The model under the rule of the mask, in Transformers."""

    def __init__(self, folder, config):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )
        for module in self.model.modules():
            # vLLM's Transformers backend wraps these very classes for compilation, and asks.
            module.do_not_compile = True
        self.config = config
        self.layers = ["full_attention"] * self.model.config.num_hidden_layers

    def under(self, config):
        """The same model under another configuration."""
        other = copy.copy(self)
        other.config = config
        return other

    def check(self, prompt, answer, greedy=True):
        """vLLM's tokens and their log-probabilities are those of the model.

        On a GPU a token may also be one that the model finds as likely, up to rounding, and one
        row may be sent to the expert that its router finds as good, up to rounding.
        """
        ids = list(answer.token_ids)
        said = [chosen[token].logprob for chosen, token in zip(answer.logprobs, ids, strict=True)]
        # Closed, because a reading that is left half read leaves its row where it was sent.
        with contextlib.closing(self.readings(prompt, ids)) as readings:
            try:
                self._compare(ids, said, next(readings), greedy)
            except AssertionError:
                if not any(self._agrees(ids, said, logits, greedy) for logits in readings):
                    raise

    def readings(self, prompt, answer):
        """Logits as the model has them; on a GPU also with each near tie of a router reversed."""
        if ON_GPU:
            yield from as_routed(self.model, lambda: self.logits(prompt, answer))
        else:
            yield self.logits(prompt, answer)

    def _agrees(self, *compared):
        try:
            self._compare(*compared)
        except AssertionError:
            return False
        return True

    def _compare(self, ids, said, logits, greedy):
        near = STOCK_TOLERANCE if self.config.full_layers else TOLERANCE
        scores = logits.log_softmax(-1)
        expected = scores[range(len(ids)), ids]
        if greedy and ON_GPU:
            assert (scores.max(-1).values - expected).max() <= 2 * near
        elif greedy:
            assert scores.argmax(-1).tolist() == ids
        torch.testing.assert_close(torch.tensor(said), expected, atol=near, rtol=near)

    def logits(self, prompt, answer):
        """Logits of the rows that emit the answer's tokens, ``[answer, vocabulary]``."""
        ids = torch.tensor([[*prompt, *answer]])
        total = ids.shape[1]
        rows = rows_of(len(prompt), self.config.dense_tail, total)
        masks = build_masks(self.config, self.layers, [0], total, rows)
        return loop_logits(self.model, ids, masks, positions([0], total))[0, len(prompt) - 1 : -1]
