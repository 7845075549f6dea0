import pytest
import torch

from swaa.adaptation import is_adapted
from swaa.selection.signals import lazy_ratio as module
from swaa.selection.signals.lazy_ratio import (
    LAST_QUERIES,
    far_attention,
    lazy_ratio,
    lazy_shares,
)
from tests.selection.conftest import DEPTH, teacher_forced


def _dense(loaded, prompt, window, sinks, queries):
    """The mean over heads, by layer."""
    return [heads.mean().item() for heads in _dense_heads(loaded, prompt, window, sinks, queries)]


def _dense_heads(loaded, prompt, window, sinks, queries):
    """Each head's share from the whole attention matrix of eager attention, by layer."""
    ids = torch.tensor([prompt])
    before = loaded.model.config._attn_implementation
    loaded.model.set_attn_implementation("eager")
    with torch.inference_mode():
        weights = loaded.model(ids, output_attentions=True).attentions
    loaded.model.set_attn_implementation(before)
    shares = []
    for matrix in weights:  # [1, heads, tokens, tokens]
        rows = range(max(0, len(prompt) - queries), len(prompt))
        kept = [
            sum(matrix[0, :, i, j] for j in range(i + 1) if j > i - window or j < sinks)
            for i in rows
        ]
        shares.append(torch.stack(kept).mean(0))
    return shares


@pytest.mark.parametrize(("window", "sinks", "queries"), [(8, 2, 64), (16, 0, 5), (1, 4, 200)])
@pytest.mark.parametrize("block", [7, 4096])
def test_it_equals_a_dense_computation(loaded, monkeypatch, window, sinks, queries, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    samples = teacher_forced(70, 41)
    found = lazy_ratio(loaded, samples, window=window, sink_tokens=sinks, queries=queries)
    each = [_dense(loaded, sample.prompt, window, sinks, queries) for sample in samples]
    for layer in range(DEPTH):
        expected = sum(shares[layer] for shares in each) / len(each)
        assert found[layer] == pytest.approx(expected, abs=1e-5)
    assert min(found.values()) < 0.95, "nothing lies beyond the window: the test cannot fail"


def test_no_tensor_has_all_queries_by_all_keys(monkeypatch):
    sizes = []
    real = module._masked_lse

    def noted(scores, mask):
        sizes.append(scores.shape[-2:])
        return real(scores, mask)

    monkeypatch.setattr(module, "_masked_lse", noted)
    monkeypatch.setattr(module, "_BLOCK", 128)
    q, k = torch.randn(1, 1000, 4, 8), torch.randn(1, 1000, 2, 8)
    lazy_shares(q, k, window=10, sink_tokens=1, scale=0.3, queries=16)
    assert all(rows <= 16 and keys <= 128 for rows, keys in sizes)


def test_attention_on_sinks_and_window_alone_is_wholly_lazy():
    q = torch.ones(1, 50, 2, 4)
    k = torch.zeros(1, 50, 1, 4)
    k[:, 0] = 1e3
    everything = lazy_shares(q, k, window=1, sink_tokens=1, scale=1.0, queries=3)
    assert torch.allclose(everything, torch.ones(1, 2, 3))
    nothing = lazy_shares(q, k, window=1, sink_tokens=0, scale=1.0, queries=3)
    assert torch.allclose(nothing, torch.zeros(1, 2, 3), atol=1e-6)


def test_the_model_is_as_before(loaded):
    lazy_ratio(loaded, teacher_forced(40), window=8, sink_tokens=2)
    assert not is_adapted(loaded.model)
    assert all("swaa_layer" not in vars(module) for module in loaded.model.modules())


@pytest.mark.parametrize(("window", "sinks"), [(8, 2), (1, 0)])
def test_far_attention_is_that_of_the_head_that_looks_farthest(loaded, window, sinks):
    samples = teacher_forced(90, 81)
    found = far_attention(loaded, samples, window=window, sink_tokens=sinks)
    heads = []
    for sample in samples:
        text, rows = sample.prompt + sample.answer, LAST_QUERIES + len(sample.answer)
        heads.append(_dense_heads(loaded, text, window, sinks, rows))
    for layer in range(DEPTH):
        far = 1 - (heads[0][layer] + heads[1][layer]) / 2
        assert found[layer] == pytest.approx(far.max().item(), abs=1e-5)
        assert far.max() > far.mean() + 1e-3, "heads are all alike"
