"""The fast path on a GPU: decoding from a CUDA graph is exact, and the host waits for nothing."""

import contextlib

import pytest
import torch

import swaa
from swaa import SWAAConfig
from swaa.integrations.transformers.compiled_layers import compiled_layers
from swaa.integrations.transformers.decode_step import DecodeStep
from swaa.integrations.transformers.fast import graph_sample, plans_of, prefill
from swaa.integrations.transformers.static_cache import StaticSWAACache
from swaa.testing import assert_close_to_oracle
from tests.integrations.families import tiny_model
from tests.integrations.test_on_gpu import CONFIG, WIDE, prompt, scored, teacher_forced

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CONFIGS = {"mixed": CONFIG, "sliding": SWAAConfig(window=64, sink_tokens=10)}
TOKENS, NEW = 501, 150
"""New tokens: a ring of 64 is overwritten twice."""


@pytest.mark.parametrize(
    ("scope", "backend", "padding"),
    [
        ("plain", "triton", 0),
        ("plain", "triton", 130),
        ("plain", "triton", 480),
        ("plain", "auto", 0),
        ("compiled", "triton", 130),
    ],
)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_graph_is_as_exact_as_eager(config, scope, backend, padding):
    ids, mask = prompt(TOKENS, padding)
    model = tiny_model("qwen3", **WIDE).cuda().bfloat16()
    swaa.adapt(model, config, backend=backend, quiet=True)
    options = {"custom_generate": graph_sample, "prefill_chunk_size": 200}
    with compiled_layers(model) if scope == "compiled" else contextlib.nullcontext():
        sequences, actual = scored(model, ids, mask, NEW, **options)
    swaa.adapt(model, config, backend="reference", quiet=True)
    eager = teacher_forced(model, sequences, mask, TOKENS)
    exact = model.double()
    swaa.adapt(exact, config, backend="reference", quiet=True)
    oracle = teacher_forced(exact, sequences, mask, TOKENS)
    assert_close_to_oracle(actual.to(torch.bfloat16), oracle, eager, name="logits")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_host_waits_for_nothing(config):
    model = tiny_model("qwen3", **WIDE).cuda().bfloat16()
    swaa.adapt(model, config, quiet=True)
    ids = prompt(TOKENS)[0]

    def run():
        cache = StaticSWAACache(model.config, plans_of(model), prompt_tokens=TOKENS, new_tokens=NEW)
        return cache, prefill(model, ids, cache, chunk=200)

    with torch.inference_mode():
        cache, logits = run()  # loads kernels, builds lists of blocks
        step = DecodeStep(model, cache, logits.argmax(-1))
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
            for _ in range(10):
                step()
            with pytest.raises(RuntimeError, match="synchronizing"):
                logits.sum().item()  # the mode works
        finally:
            torch.cuda.set_sync_debug_mode("default")
