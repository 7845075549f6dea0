"""In 16 bits: on a GPU as people serve, compiled, in CUDA graphs, FlashAttention beside ours.

The judge is the model in float32 under a mask written out; what rounding may do is measured on the
same model in 16 bits under eager attention: twice its largest error.
"""

import pytest

from tests.rounded import CHUNK, CONFIGS, PROMPTS, judge, said, save_wide_model
from tests.vllm.engine import ON_GPU, Engine, prompts_of

OPTIONS = {
    "dtype": "bfloat16",
    "max_model_len": 4096,
    "max_num_batched_tokens": CHUNK,
    "num_gpu_blocks_override": 3000,
}
if ON_GPU:  # vLLM's default: compiled, decoding in whole CUDA graphs, the rest in pieces
    OPTIONS["compilation_config"] = {"cudagraph_capture_sizes": [1, 2, 4, 8]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_wide_model(tmp_path_factory.mktemp("qwen3"))


@pytest.mark.parametrize("name", CONFIGS)
def test_logprobs_and_tokens(folder, name):
    config = CONFIGS[name]
    prompts = prompts_of(*PROMPTS, seed=21)
    with Engine(folder, config.to_dict(), **OPTIONS) as engine:
        together = engine.answers(prompts, max_tokens=40)
        engine.forget()
        alone = [engine.answers([prompt], max_tokens=40)[0] for prompt in prompts]
        repeated = engine.answers(prompts, max_tokens=40)  # from the prefix cache
    judge(folder, config, prompts, [said(answers) for answers in (together, alone, repeated)])
