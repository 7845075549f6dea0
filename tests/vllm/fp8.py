"""The judge of engines with an fp8 cache: keys and values rounded as the cache rounds them."""

import torch
from transformers import AttentionInterface

from tests.integrations import loop_model
from tests.vllm.engine import Judge

FP8 = torch.float8_e4m3fn
ROUNDED = "swaa_loop_fp8"
FACTORS = {}
"""Of keys and of values, by layer; 1.0 where there is none."""
# A key that two sums in float32 find on either side of the middle between two numbers of fp8 is
# rounded to both: its products then differ by 6 %. A few of the 100,000 numbers of a prompt are.
TOLERANCE = 2e-2


def rounded(x, factor):
    """What the cache gives back: divided, rounded, multiplied."""
    return (x / factor).clamp(-448, 448).to(FP8).to(x.dtype) * factor


def rounded_attention(module, query, key, value, *given, **named):
    key, value = map(rounded, (key, value), FACTORS.get(module.layer_idx, (1.0, 1.0)))
    return loop_model.loop_attention(module, query, key, value, *given, **named)


AttentionInterface.register(ROUNDED, rounded_attention)


class RoundedJudge(Judge):
    """The model under the rule of the mask, its keys and values as an fp8 cache holds them."""

    implementation = ROUNDED
    near = TOLERANCE

    def __init__(self, folder, config, factors=None):
        super().__init__(folder, config)
        FACTORS.clear()
        FACTORS.update(factors or {})

    def exact(self):
        """The same judge with keys and values as they are."""
        other = self.under(self.config)
        other.implementation = loop_model.LOOP
        return other

    def errors(self, prompt, answer):
        """How far each log-probability of an answer is from the model's."""
        ids = list(answer.token_ids)
        said = [step[token].logprob for step, token in zip(answer.logprobs, ids, strict=True)]
        expected = self.logits(prompt, ids).log_softmax(-1)[range(len(ids)), ids]
        return (torch.tensor(said) - expected).abs()


def round_cache(monkeypatch):
    """Let the caches of adapted models round what they are given."""
    from swaa.integrations.transformers.cache import SWAACache

    update = SWAACache.update

    def rounding(self, key, value, layer, *given, **named):
        return update(self, rounded(key, 1.0), rounded(value, 1.0), layer, *given, **named)

    monkeypatch.setattr(SWAACache, "update", rounding)
