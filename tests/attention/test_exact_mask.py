from dataclasses import replace

import pytest
import torch

from swaa.attention import swaa_attention
from swaa.testing import SHAPES, Case, assert_sees_the_rule, keys_seen
from tests.attention.judge import BACKENDS, DEVICE, GPU, few_programs

TRITON_DTYPES = [torch.bfloat16, torch.float16, torch.float32] if GPU else [torch.float32]

# Where the edges of sinks, window, full rows and tiles meet: tiles are 32 wide in the interpreter,
# 64 and 128 on a GPU.
TILES = (
    Case(queries=97, window=32, sink_tokens=32, heads=1, kv_heads=1),
    Case(queries=97, window=33, sink_tokens=31, heads=1, kv_heads=1),
    Case(queries=131, window=31, sink_tokens=1, full_from=50, full_until=51, heads=1, kv_heads=1),
    Case(queries=131, window=1, sink_tokens=64, full_from=128, heads=1, kv_heads=1),
    Case(queries=65, keys=200, window=40, sink_tokens=100, heads=1, kv_heads=1),
    Case(queries=33, keys=161, window=64, sink_tokens=3, starts=(97, 30), heads=1, kv_heads=1),
)
LARGE = (
    Case(queries=1000, window=128, sink_tokens=128, head_dim=128),
    Case(queries=1000, window=129, sink_tokens=127, heads=4, kv_heads=2),
    Case(queries=700, window=100, sink_tokens=200, full_from=300, full_until=301, head_dim=128),
    Case(queries=300, keys=900, window=257, sink_tokens=10, full_from=899, head_dim=256),
    Case(queries=900, window=128, sink_tokens=10, head_dim=80),
)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_rows_see_exactly_the_keys_of_the_rule(case, backend):
    assert_sees_the_rule(case, backend=backend)


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize("case", SHAPES + TILES, ids=lambda case: case.id)
def test_triton_rows_see_exactly_the_keys_of_the_rule(case, dtype):
    pytest.importorskip("triton")
    assert_sees_the_rule(in_few_calls(case), backend="triton", dtype=dtype, device=DEVICE)


def in_few_calls(case):
    """The same mask with the most channels, and so keys per call, where the interpreter is slow.

    Its tiles are the same for every head_dim, except those of few rows, which decoding reads.
    """
    slow = not GPU and case.queries > 8 and case.head_dim == 64
    return few_programs(replace(case, head_dim=256) if slow else case)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="too large for the interpreter")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.id)
def test_many_tiles_see_exactly_the_keys_of_the_rule(case, dtype):
    assert_sees_the_rule(case, backend="triton", dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_one_key_wider_is_noticed(backend):
    def attend(q, k, v, window):
        return swaa_attention(q, k, v, window=window, sink_tokens=2, backend=backend)

    sizes = {"batch": 1, "queries": 300, "keys": 300, "head_dim": 256, "device": DEVICE}
    seen = keys_seen(lambda q, k, v: attend(q, k, v, 128), **sizes)
    wider = keys_seen(lambda q, k, v: attend(q, k, v, 129), **sizes)
    assert (wider & ~seen).sum() == 300 - 130
