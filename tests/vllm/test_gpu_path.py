"""What can be shown of the GPU path without a GPU: our kernels, interpreted, and fixed buffers."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from swaa.config import LayerPlan, SWAAConfig
from tests.vllm.test_features import CONFIGS

CPU = torch.device("cpu")
INTERPRETED = """
import functools
import sys
import tests.vllm.conftest
import torch
import swaa.attention.triton
swaa.attention.triton.serves_cpu = True
torch.cuda.get_device_capability = lambda *device: (9, 0)  # vLLM's cache write asks
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from swaa.integrations.vllm import backend
from swaa.integrations.vllm.attention import GPUAttention
GPUAttention.min_rows = 32
backend.platform_attention = lambda: (TritonAttentionBackend, GPUAttention)
from swaa.config import SWAAConfig
from tests.vllm.engine import Engine, Judge, prompts_of
{before}
prompts = prompts_of(5, 65, 150)
for config in map(SWAAConfig.from_dict, {configs}):
    judge = Judge(sys.argv[1], config)
    with Engine(sys.argv[1], config.to_dict()) as engine:
        for prompt, answer in zip(prompts, engine.answers(prompts, max_tokens=4), strict=True):
            judge.check(prompt, answer)
    print(config, "agrees")
"""
IN_FP8 = """
from swaa.integrations.vllm.attention import CPUAttention
from tests.vllm.fp8 import RoundedJudge as Judge
GPUAttention.write = CPUAttention.write  # the interpreter rounds 1.99 to 1.0 in fp8, not to 2.0
Engine = functools.partial(Engine, kv_cache_dtype="fp8")
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", IN_FP8], ids=["float32", "fp8"])
def test_our_kernels_under_vllms_scheduler(checkpoint, before):
    """All that a GPU runs of ours, in Triton's interpreter: backend class, cache write, kernels."""
    configs = (
        SWAAConfig(window=24, sink_tokens=4, full_layers=(1,)),
        SWAAConfig(window=24, sink_tokens=4, full_decode=(2,), dense_tail=8),
        CONFIGS["heads"],
    )
    configs = configs[:1] if before else configs
    code = INTERPRETED.format(configs=[config.to_dict() for config in configs], before=before)
    ran = subprocess.run(
        [sys.executable, "-c", code, checkpoint(kv_heads=4)],
        env=os.environ | {"TRITON_INTERPRET": "1", "SWAA_TEST_RUNNER": "v2"},
        capture_output=True,
        text=True,
        check=False,
    )
    agreed = [line for line in ran.stdout.splitlines() if line.endswith("agrees")]
    assert agreed == [f"{config} agrees" for config in configs], ran.stderr[-3000:]


def make_builder(plan, v2, drafts=0, kind=None):
    from swaa.integrations.vllm.metadata import SlidingMetadataBuilder

    vllm_config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=64),
        model_config=SimpleNamespace(max_model_len=4096),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        compilation_config=SimpleNamespace(max_cudagraph_capture_size=8),
        use_v2_model_runner=v2,
        speculative_config=SimpleNamespace(num_speculative_tokens=drafts) if drafts else None,
    )
    kind = kind or type("Builder", (SlidingMetadataBuilder,), {"plan": plan, "min_rows": 32})
    return kind(SimpleNamespace(block_size=16), [], vllm_config, CPU)


def batch(requests, prompt_lengths):
    return SimpleNamespace(
        num_reqs=requests,
        num_actual_tokens=requests,
        max_query_len=1,
        max_seq_len=100,
        query_start_loc=torch.arange(requests + 1, dtype=torch.int32),
        seq_lens=torch.full((requests,), 100, dtype=torch.int32),
        block_table_tensor=torch.zeros(requests, 4, dtype=torch.int32),
        slot_mapping=torch.arange(requests),
        seq_lens_cpu_upper_bound=None,
        rswa_prefix_lens=None
        if prompt_lengths is None
        else torch.tensor(prompt_lengths, dtype=torch.int32),
    )


def test_captured_numbers_are_those_of_the_batch_that_replays():
    builder = make_builder(LayerPlan(window=8, full_decode=True, dense_tail=3), v2=True)
    captured = builder.build(0, batch(4, None))
    builder.build(0, batch(4, [50, 1]))  # two requests, padded to the captured four
    assert captured.full_from[:2].tolist() == [47, 0]
    assert captured.full_until is None
    again = builder.build(0, batch(8, [7, 8, 9]))
    assert again.full_from.data_ptr() == captured.full_from.data_ptr()
    assert captured.full_from[:3].tolist() == [4, 5, 6]


def test_numbers_are_made_once_for_layers_with_unlike_heads():
    builder = make_builder(LayerPlan(window=8, full_decode=True), v2=True)
    other = make_builder(builder.plan, v2=True, kind=type(builder))
    given = batch(2, [50, 20])
    made = builder.build(0, given)
    assert other.build(0, given) is made
    for found in (other.build(0, batch(2, [50, 21])), builder.build(0, given)):
        assert found is not made


def test_tail_ends_with_the_prompt_without_full_decode():
    builder = make_builder(LayerPlan(window=8, dense_tail=3), v2=False)
    made = builder.build(0, batch(2, [50, 20]))
    assert made.full_from.tolist() == [47, 17]
    assert made.full_until.tolist() == [50, 20]


def test_plan_without_phases_needs_no_prompt_lengths():
    made = make_builder(LayerPlan(window=8, sink_tokens=2), v2=False).build(0, batch(2, None))
    assert made.full_from is None
    assert made.full_until is None


def test_v1_runner_that_passes_no_prompt_lengths_is_an_error():
    builder = make_builder(LayerPlan(window=8, dense_tail=3), v2=False)
    with pytest.raises(RuntimeError, match="no prompt lengths"):
        builder.build(0, batch(2, None))


@pytest.mark.parametrize("tail", [0, 8])
def test_warm_up_meets_what_long_prompts_need(tail):
    from swaa.integrations.vllm.warmup import _batches

    builder = make_builder(LayerPlan(window=8, sink_tokens=2, dense_tail=tail), v2=True)
    far, near, short = [builder.build(0, made) for made in _batches(builder, CPU, 4096)]
    assert far.chunks.layout.gaps[0] > 0
    assert len(far.chunks.layout.apart) == bool(tail)
    assert near.chunks.layout.gaps == (0,)
    assert (near.chunks.full_from is not None) == bool(tail)
    assert short.chunks is None
    assert len(list(_batches(builder, CPU, 64))) == 1
