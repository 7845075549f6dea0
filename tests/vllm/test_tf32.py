"""What a GPU's rounding does to a mixture of experts, seen on a CPU.

Tensor cores read the upper 19 bits of a float32 (TF32). vLLM's experts and full layers, whose
operands are cut here in the same way, then fail the same judge in the same token as on an H200.
"""

import pytest
import torch

from tests import served
from tests.vllm.engine import ON_GPU, V2, Engine, Judge, prompts_of
from tests.vllm.test_models import CONFIG


def tf32(x):
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def experts(self, output, hidden_states, w1, w2, topk_weights, topk_ids, *_args, **_kwargs):
    """Gate and up projection ``w1``, SiLU, down projection ``w2``, expert by expert."""
    output.zero_()
    for expert in range(len(w1)):
        rows, place = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = (tf32(hidden_states[rows]) @ tf32(w1[expert]).T).chunk(2, dim=-1)
        down = tf32(torch.nn.functional.silu(gate) * up) @ tf32(w2[expert]).T
        output.index_add_(0, rows, down * topk_weights[rows, place, None])


def cut_operands(monkeypatch):
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    def attend(self, layer, query, *args, real=CPUAttentionBackendImpl.forward, **kwargs):
        return real(self, layer, tf32(query), *args, **kwargs)

    def store(self, layer, key, value, *args, **kwargs):
        return stock_store(self, layer, tf32(key), tf32(value), *args, **kwargs)

    stock_store = CPUAttentionBackendImpl.do_kv_cache_update
    monkeypatch.setattr(CPUAttentionBackendImpl, "forward", attend)
    monkeypatch.setattr(CPUAttentionBackendImpl, "do_kv_cache_update", store)
    monkeypatch.setattr(CPUUnquantizedExperts, "apply", experts)
    # The weights stay as they are, instead of in the order that a CPU likes.
    monkeypatch.setattr(CPUUnquantizedExperts, "process_weights_after_loading", lambda *_: None)


@pytest.mark.skipif(ON_GPU or V2, reason="rounds a CPU's operands")
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_mixture_of_experts_under_a_gpus_rounding(checkpoint, monkeypatch, family):
    cut_operands(monkeypatch)
    judge = Judge(checkpoint(family), CONFIG)
    prompts = prompts_of(129, 40)
    with Engine(checkpoint(family), CONFIG.to_dict()) as running:
        answers = running.answers(prompts, max_tokens=12)
    monkeypatch.setattr(served, "STOCK_TOLERANCE", 5e-2)
    if family == "mixtral":
        with pytest.raises(AssertionError, match=r"Greatest absolute difference: 0\.38"):
            judge.check(prompts[0], answers[0], greedy=False)
    monkeypatch.setattr(served, "ON_GPU", True)
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)
