"""In 16 bits: on a GPU as people serve, compiled, in CUDA graphs, FlashAttention beside ours.

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

DEVICE = "cuda" if ON_GPU else "cpu"
LAYERS = 8
# On a GPU chunks long enough for the kernels of long chunks; on a CPU a tenth of all that.
SCALE = 10 if ON_GPU else 1
WINDOW, CHUNK = 26 * SCALE, 104 * SCALE
PROMPTS = (300 * SCALE, 1, 70 * SCALE, 2 * CHUNK + 1, 103 * SCALE)
CONFIGS = {
    "quarter": SWAAConfig(window=WINDOW, sink_tokens=3 * SCALE, full_layers=(3, 7)),
    "full_decode": SWAAConfig(window=WINDOW, sink_tokens=3 * SCALE, full_decode=True),
    "tail": SWAAConfig(
        window=WINDOW,
        sink_tokens=3 * SCALE,
        full_layers=(1,),
        full_decode=(4, 5),
        dense_tail=6 * SCALE,
    ),
}
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
    model = tiny_model(
        "qwen3",
        hidden_size=1024 if ON_GPU else 256,
        intermediate_size=1024 if ON_GPU else 256,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128 if ON_GPU else 32,
        max_position_embeddings=8192,
        initializer_range=0.04 if ON_GPU else 0.08,
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
    ids = torch.tensor([[*prompt, *answer]], device=DEVICE)
    total = ids.shape[1]
    masks = {n: mask_of(config, n, len(prompt), total)[None].to(DEVICE) for n in range(LAYERS)}
    logits = loop_logits(model, ids, masks, torch.arange(total, device=DEVICE)[None])
    return logits[0, len(prompt) - 1 : -1].float().log_softmax(-1).cpu()


@pytest.mark.parametrize("name", CONFIGS)
def test_logprobs_and_tokens(folder, name):
    from transformers import AutoModelForCausalLM

    config = CONFIGS[name]
    prompts = prompts_of(*PROMPTS, seed=21)
    with Engine(folder, config.to_dict(), **OPTIONS) as engine:
        together = engine.answers(prompts, max_tokens=40)
        engine.forget()
        alone = [engine.answers([prompt], max_tokens=40)[0] for prompt in prompts]
        repeated = engine.answers(prompts, max_tokens=40)  # from the prefix cache
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(DEVICE)
    rounded = copy.deepcopy(exact).bfloat16()
    judged, allowed = [], 0.0
    for answers in (together, alone, repeated):
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = list(answer.token_ids)
            expected = scores(exact, config, prompt, ids)
            errors = scores(rounded, config, prompt, ids) - expected
            allowed = max(allowed, 2 * float(errors[range(len(ids)), ids].abs().max()))
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
