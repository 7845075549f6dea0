"""A model whose layers select keys, trained by the kernels: losses and gradients are eager ones."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import swaa
from swaa import SWAAConfig
from swaa.training.forward import attach_losses, student_losses

CONFIG = SWAAConfig(
    window=20,
    sink_tokens=3,
    full_decode=True,
    dense_tail=4,
    selected_layers="all",
    selected_keys=64 * 64,  # all there is: no rounding decides which
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS = 150


def _model():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 60, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.3)).to(DEVICE)


def _batch():
    """Two conversations, one of two turns; the shorter one is padded on the right."""
    ids = torch.randint(60, (2, TOKENS), device=DEVICE)
    labels = torch.full_like(ids, -100)
    for row, first, end in ((0, 142, 150), (1, 60, 66), (1, 138, 144)):
        labels[row, first:end] = ids[row, first:end]
    mask = torch.ones_like(ids)
    mask[1, 144:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _trained(model, batch, backend, dtype, config=CONFIG):
    """The loss, and all gradients in one row."""
    model = copy.deepcopy(model).to(dtype).train()
    swaa.adapt(model, config, backend=backend, quiet=True)
    attach_losses(model)
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()
    loss = student_losses(model, batch).sft / 20
    loss.backward()
    return loss.item(), torch.cat([x.grad.double().flatten() for x in model.parameters()])


def test_the_kernels_give_the_losses_and_gradients_of_eager_attention(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr("swaa.attention.triton.serves_cpu", True)
    model, batch = _model(), _batch()
    loss, wanted = _trained(model, batch, "reference", torch.float64)
    slid = _trained(
        model,
        batch,
        "reference",
        torch.float64,
        replace(CONFIG, selected_layers=(), selected_keys=0),
    )
    (rounded, eager), (actual, found) = (
        _trained(model, batch, backend, torch.float16) for backend in ("reference", "triton")
    )
    assert abs(actual - loss) <= 2 * abs(rounded - loss) + 1e-3 * loss
    error = (found - wanted).norm()
    assert error <= 2 * (eager - wanted).norm() + 1e-3 * wanted.norm()
    assert (slid[1] - wanted).norm() > 10 * error
