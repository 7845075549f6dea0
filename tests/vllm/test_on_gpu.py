"""As people serve on a GPU: 16 bits, torch.compile, CUDA graphs, vLLM's FlashAttention beside ours.

The judge is the model in float32 under a mask written out; what rounding may do is measured on the
same model in 16 bits under eager attention: twice its largest error.
"""

import copy

import pytest
import torch

from swaa.config import SWAAConfig
from tests.integrations.families import tiny_model
from tests.integrations.loop_model import loop_logits
from tests.vllm.engine import ON_GPU, Engine, prompts_of

pytestmark = pytest.mark.skipif(not ON_GPU, reason="needs a GPU (SWAA_TEST_DEVICE=cuda)")

LAYERS = 8
CONFIGS = {
    "quarter": SWAAConfig(window=256, sink_tokens=32, full_layers=(3, 7)),
    "full_decode": SWAAConfig(window=256, sink_tokens=32, full_decode=True),
    "tail": SWAAConfig(
        window=256, sink_tokens=32, full_layers=(1,), full_decode=(4, 5), dense_tail=64
    ),
}
COMPILED = {"cudagraph_capture_sizes": [1, 2, 4, 8]}
"""vLLM's default: compiled, decoding in whole CUDA graphs, the rest in pieces."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_model(
        "qwen3",
        hidden_size=1024,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=8192,
        initializer_range=0.04,
    )
    path = tmp_path_factory.mktemp("qwen3")
    model.to(torch.bfloat16).save_pretrained(path)
    return str(path)


def mask_of(config, layer, prompt, total):
    i, j = torch.arange(total)[:, None], torch.arange(total)
    full = layer in config.full_layers
    decodes = config.full_decode is True or layer in (config.full_decode or ())
    full_rows = (i >= prompt - config.dense_tail) & (i < prompt) | (i >= prompt) & decodes
    near = (i - j < config.window) | (j < config.sink_tokens)
    return (j <= i) & (full | full_rows | near)


def scores(model, config, prompt, answer):
    """Log-probabilities of the rows that emit the answer, ``[answer, vocabulary]``."""
    ids = torch.tensor([[*prompt, *answer]], device="cuda")
    total = ids.shape[1]
    masks = {n: mask_of(config, n, len(prompt), total)[None].cuda() for n in range(LAYERS)}
    logits = loop_logits(model, ids, masks, torch.arange(total, device="cuda")[None])
    return logits[0, len(prompt) - 1 : -1].float().log_softmax(-1).cpu()


@pytest.mark.parametrize("name", CONFIGS)
def test_logprobs_and_tokens(folder, name):
    from transformers import AutoModelForCausalLM

    config = CONFIGS[name]
    prompts = prompts_of(3000, 1, 700, 2049, 1030, seed=21)
    options = {
        "dtype": "bfloat16",
        "block_size": 16,
        "max_model_len": 4096,
        "max_num_batched_tokens": 1024,
        "num_gpu_blocks_override": 3000,
        "compilation_config": COMPILED,
    }
    with Engine(folder, config.to_dict(), **options) as engine:
        together = engine.answers(prompts, max_tokens=40)
        engine.forget()
        alone = [engine.answers([prompt], max_tokens=40)[0] for prompt in prompts]
        repeated = engine.answers(prompts, max_tokens=40)  # from the prefix cache
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda()
    rounded = copy.deepcopy(exact).bfloat16()
    judged, allowed = [], 0.0
    for answers in (together, alone, repeated):
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = list(answer.token_ids)
            expected = scores(exact, config, prompt, ids)
            error = (scores(rounded, config, prompt, ids) - expected).abs().max()
            allowed = max(allowed, 2 * float(error))
            said = torch.tensor(
                [step[token].logprob for step, token in zip(answer.logprobs, ids, strict=True)]
            )
            judged.append((ids, expected, said))
    worst = max(
        float((said - expected[range(len(ids)), ids]).abs().max()) for ids, expected, said in judged
    )
    behind = max(
        float((expected.max(-1).values - expected[range(len(ids)), ids]).max())
        for ids, expected, _ in judged
    )
    print(f"{name}: logprob error {worst:.4f}, chosen behind {behind:.4f}, allowed {allowed:.4f}")
    assert worst <= allowed
    assert behind <= 2 * allowed
    blind = scores(exact, SWAAConfig(window=4096), prompts[0], judged[0][0])
    ids, _, said = judged[0]
    assert (said - blind[range(len(ids)), ids]).abs().max() > allowed, "cannot tell the mask"
