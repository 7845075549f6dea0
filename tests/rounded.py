"""What 16 bits may change: a model in float32 judges, the same model in 16 bits sets the bound."""

import copy

import torch

from swaa.config import SWAAConfig
from tests.integrations.families import tiny_model
from tests.integrations.loop_model import loop_logits
from tests.served import ON_GPU

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


def save_wide_model(path):
    """Save a random model in bfloat16 whose rounding errors are those of larger ones."""
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
    model.to(torch.bfloat16).save_pretrained(path)
    return str(path)


def said(answers):
    """Tokens of each answer, and their log-probabilities."""
    for answer in answers:
        ids = list(answer.token_ids)
        yield ids, [step[token].logprob for step, token in zip(answer.logprobs, ids, strict=True)]


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


def judge(folder, config, prompts, rounds):
    """Compare answers in 16 bits with the model; ``rounds``: answers to all prompts, each time.

    An answer is its tokens and their log-probabilities.
    """
    from transformers import AutoModelForCausalLM

    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(DEVICE)
    rounded = copy.deepcopy(exact).bfloat16()
    judged, allowed = [], 0.0
    for answers in rounds:
        for prompt, (ids, said) in zip(prompts, answers, strict=True):
            expected = scores(exact, config, prompt, ids)
            errors = scores(rounded, config, prompt, ids) - expected
            allowed = max(allowed, 2 * float(errors[range(len(ids)), ids].abs().max()))
            judged.append((ids, expected, torch.tensor(said)))
    worst = max(
        float((said - expected[range(len(ids)), ids]).abs().max()) for ids, expected, said in judged
    )
    behind = max(
        float((expected.max(-1).values - expected[range(len(ids)), ids]).max())
        for ids, expected, _ in judged
    )
    print(
        f"{config.describe()}: logprob error {worst:.4f}, chosen behind {behind:.4f},"
        f" allowed {allowed:.4f}"
    )
    assert worst <= allowed
    assert behind <= 2 * allowed
    blind = scores(exact, SWAAConfig(window=4096), prompts[0], judged[0][0])
    ids, _, said = judged[0]
    assert (said - blind[range(len(ids)), ids]).abs().max() > allowed, "cannot tell the mask"
