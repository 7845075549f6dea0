import functools
import itertools

import pytest
import torch

from swaa.adaptation import adapt
from swaa.config import SWAAConfig
from swaa.selection.passes import SharedPasses
from tests.integrations.loop_model import build_masks, loop_logits, positions, rows_of
from tests.selection.conftest import DEPTH, teacher_forced

NAIVE = SWAAConfig(window=8, sink_tokens=2)
CONFIGS = {
    "naive": NAIVE,
    "one full": SWAAConfig(window=8, sink_tokens=2, full_layers=(2,)),
    "decode": SWAAConfig(window=8, sink_tokens=2, full_decode=True),
    "decode in one": SWAAConfig(window=8, sink_tokens=2, full_decode=(3,)),
    "tail": SWAAConfig(window=8, sink_tokens=2, dense_tail=6),
    "tail and decode": SWAAConfig(window=8, sink_tokens=2, full_decode=(1, 2), dense_tail=12),
    "all": SWAAConfig(window=6, sink_tokens=3, full_layers=(0,), full_decode=(1, 3), dense_tail=4),
    "full": SWAAConfig(window=None),
}


PLAIN = {}


def _plain(loaded, sample, config):
    """As :func:`_plain_loops`, remembered: loops are slow, and every reference needs the same."""
    if (sample, config) not in PLAIN:
        PLAIN[sample, config] = _plain_loops(loaded, sample, config)
    return PLAIN[sample, config]


def _plain_loops(loaded, sample, config):
    """NLL and logits of the answer by one forward pass under masks that plain loops build."""
    ids = torch.tensor([sample.prompt + sample.answer])
    total, prompt = ids.shape[1], len(sample.prompt)
    types = ["full_attention"] * DEPTH
    if config.window is None:
        config = SWAAConfig(window=total)
    masks = build_masks(config, types, [0], total, rows_of(prompt, config.dense_tail, total))
    logits = loop_logits(loaded.model, ids, masks, positions([0], total))[0, prompt - 1 : -1]
    target = torch.tensor(sample.answer)
    return torch.nn.functional.cross_entropy(logits, target).item(), logits, target


def _measured(loaded, samples, reference, configs, *, batch_size=1, tail=12, kl=True):
    with SharedPasses(loaded, samples, batch_size=batch_size, tail=tail) as passes:
        plans = [config.layers(DEPTH) for config in configs]
        return list(passes.measure(reference.layers(DEPTH), plans, kl=kl))


@pytest.mark.parametrize("reference", CONFIGS.values(), ids=CONFIGS)
def test_a_pass_that_shares_equals_a_plain_forward_under_the_same_mask(loaded, reference):
    samples = teacher_forced(40, 33, 51)
    found = _measured(loaded, samples, reference, CONFIGS.values())
    for config, scores in zip(CONFIGS.values(), found, strict=True):
        for sample, nll, kl, exact in zip(samples, *scores, strict=True):
            expected, logits, target = _plain(loaded, sample, config)
            assert nll == pytest.approx(expected, abs=1e-5)
            full = _plain(loaded, sample, SWAAConfig(window=None))[1].log_softmax(-1)
            ours = logits.log_softmax(-1)
            assert kl == pytest.approx((full.exp() * (full - ours)).sum(-1).mean().item(), abs=1e-5)
            assert exact == bool((logits.argmax(-1) == target).all())
    assert max(found[-1].kl) < 1e-6
    assert max(found[0].kl) > 0.1, "the model cannot tell the masks apart"


@pytest.mark.parametrize("tail", [12, 30, 200])
def test_batches_of_different_lengths_equal_each_sample_alone(loaded, tail):
    samples = teacher_forced(60, 90, 33, 61)
    configs = list(CONFIGS.values())
    alone = _measured(loaded, samples, NAIVE, configs, tail=tail)
    together = _measured(loaded, samples, NAIVE, configs, batch_size=3, tail=tail)
    for a, b in zip(alone, together, strict=True):
        assert a.nll == pytest.approx(b.nll, abs=1e-5)
        assert a.kl == pytest.approx(b.kl, abs=1e-5)
        assert a.exact == b.exact


def _calls(loaded, monkeypatch, run):
    """Rows that each decoder layer computes."""
    rows = [[] for _ in loaded.model.model.layers]
    # What is counted are the passes asked for, not those that adapt tries a model with.
    monkeypatch.setattr("swaa.selection.passes.adapt", functools.partial(adapt, trial=False))
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: rows[module.layer_idx].append(
                kwargs["hidden_states"].shape[1]
            ),
            with_kwargs=True,
        )
        for layer in loaded.model.model.layers
    ]
    run()
    for hook in hooks:
        hook.remove()
    return rows


def test_layers_below_the_flipped_one_are_not_computed_again(loaded, monkeypatch):
    samples = teacher_forced(60)
    flips = [SWAAConfig(window=8, sink_tokens=2, full_layers=(i,)) for i in range(DEPTH)]
    rows = _calls(loaded, monkeypatch, lambda: _measured(loaded, samples, NAIVE, flips, kl=False))
    whole = len(samples[0].prompt + samples[0].answer)
    # The reference, then one pass for each flip at or below the layer.
    assert [sum(layer) for layer in rows] == [whole * (2 + i) for i in range(DEPTH)]


def test_full_decode_and_tail_leave_the_prefix_alone(loaded, monkeypatch):
    samples = teacher_forced(60)
    changes = [
        SWAAConfig(window=8, sink_tokens=2, full_decode=(3,)),
        SWAAConfig(window=8, sink_tokens=2, full_decode=(1,), dense_tail=12),
    ]
    rows = _calls(loaded, monkeypatch, lambda: _measured(loaded, samples, NAIVE, changes, kl=False))
    suffix = len(samples[0].answer) + 12
    assert [sum(layer) for layer in rows] == [60 + suffix] * 3 + [60 + 2 * suffix]


def test_the_model_is_as_before_behind_the_passes(loaded):
    ids = torch.arange(5, 60)[None]
    hooks = {layer: list(layer._forward_hooks.values()) for layer in loaded.model.model.layers}
    with torch.inference_mode():
        before = loaded.model(ids).logits
    _measured(loaded, teacher_forced(60), NAIVE, [NAIVE])
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, before)
    for layer in loaded.model.model.layers:
        assert "forward" not in vars(layer)
        assert list(layer._forward_hooks.values()) == hooks[layer]


def test_out_of_memory_says_what_to_change(loaded, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(type(loaded.model), "forward", fail)
    with pytest.raises(ValueError, match="out of memory with 1 samples of 60 tokens; lower"):
        _measured(loaded, teacher_forced(60), NAIVE, [NAIVE])


def test_scores_come_in_the_order_of_candidates_and_samples(loaded):
    samples = teacher_forced(40, 90, 33, 61)
    forward = _measured(loaded, samples, NAIVE, [CONFIGS["tail"], NAIVE], batch_size=2)
    back = _measured(loaded, samples[::-1], NAIVE, [NAIVE, CONFIGS["tail"]], batch_size=2)
    for a, b in itertools.product((0, 1), repeat=2):
        same = torch.allclose(torch.tensor(forward[a].nll), torch.tensor(back[b].nll[::-1]))
        assert same == (a != b)


def test_a_plan_with_a_longer_tail_than_declared_is_our_own_bug(loaded):
    with pytest.raises(AssertionError, match="the tail reaches the prefix"):
        _measured(loaded, teacher_forced(60), NAIVE, [CONFIGS["tail"]], tail=4)
