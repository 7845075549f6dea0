"""What the shape table cannot say: packing, declared lefts, unused slots, plans, refusals."""

import pytest
import torch

from swaa.attention import BackendError, swaa_attention
from swaa.attention.api import choose_backend, make_call
from swaa.attention.mask import visible
from swaa.testing import SHAPES, Case, keys_seen, make_inputs
from tests.attention.judge import (
    DEVICE,
    GPU,
    HALF_DTYPES,
    assert_gradients_like_the_reference,
    gradients,
)

pytest.importorskip("triton")

from swaa.attention import triton as backend
from swaa.attention.triton import hopper, prefill, tiles
from swaa.attention.triton.sequences import numbers_of
from swaa.attention.triton.tiles import Tile, tile_for

HEADS, KV_HEADS, HEAD_DIM = (8, 2, 128) if GPU else (4, 2, 64)


def tokens(count, heads, dtype):
    return torch.randn(1, count, heads, HEAD_DIM).to(DEVICE, dtype)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_packed_sequences_are_attended_one_by_one(dtype):
    offsets = int32(0, 1, 1, 71, 104, 140)
    q, k, v = (tokens(150, heads, dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))
    arguments = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "window": 20, "sink_tokens": 5}
    full = int32(0, 0, 60, 33, 10)
    assert_gradients_like_the_reference(
        (q, k, v), "triton", full_from=full, full_until=full + 5, **arguments
    )


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_packed_chunks_behind_cached_keys(dtype):
    arguments = {"cu_seqlens_q": int32(0, 3, 40, 41), "cu_seqlens_k": int32(0, 70, 107, 190)}
    q, k, v = tokens(41, HEADS, dtype), tokens(190, KV_HEADS, dtype), tokens(190, KV_HEADS, dtype)
    assert_gradients_like_the_reference((q, k, v), "triton", window=16, sink_tokens=4, **arguments)


def test_tokens_behind_the_last_packed_sequence_are_zero_and_harmless():
    offsets = int32(0, 30, 70)
    q, k, v = (tokens(100, heads, torch.float16) for heads in (HEADS, KV_HEADS, KV_HEADS))
    for x in (q, k, v):
        x[:, 70:] = float("nan")
    leaves = [x.requires_grad_() for x in (q, k, v)]
    arguments = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "window": 16, "sink_tokens": 2}
    output, lse = swaa_attention(*leaves, backend="triton", **arguments)
    assert not output[:, 70:].any()
    assert (lse[:, :, 70:] == float("-inf")).all()
    (output[:, :70] ** 2).sum().backward()
    for x in leaves:
        assert torch.isfinite(x.grad).all()
        assert not x.grad[:, 70:].any()


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_declared_lefts(dtype):
    heads, kv_heads = (HEADS, KV_HEADS) if GPU else (2, 1)
    case = Case(queries=140, starts=(0, 11), heads=heads, kv_heads=kv_heads, head_dim=HEAD_DIM)
    rows = torch.arange(140, device=DEVICE)
    left = torch.stack([rows - 20, rows - 40])
    left[0, 60:70] = 0  # an answer in the first turn
    left[:, 120:] = 0
    left[1, 50] = 49
    arguments = {
        "window": 20,
        "left": left.int(),
        "sink_tokens": 6,
        "kv_start": int32(*case.starts),
    }
    seen = keys_seen(
        lambda q, k, v: swaa_attention(q, k, v, backend="triton", **arguments),
        batch=2,
        queries=140,
        keys=140,
        head_dim=256,  # all keys at a time
        dtype=dtype,
        device=DEVICE,
    )
    rule = visible(rows[None], rows[None], left, kv_start=arguments["kv_start"], sink_tokens=6)
    assert torch.equal(seen, rule.cpu())
    inputs = make_inputs(case, dtype=dtype, device=DEVICE)
    assert_gradients_like_the_reference(inputs, "triton", **arguments)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_packed_declared_lefts(dtype):
    offsets = int32(0, 70, 150)
    left = torch.cat([torch.arange(70), torch.arange(80)])[None].int().to(DEVICE) - 15
    left[:, 60:70] = 0
    left[:, 100:103] = 0
    q, k, v = (tokens(150, heads, dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))
    arguments = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "left": left}
    assert_gradients_like_the_reference((q, k, v), "triton", window=16, sink_tokens=3, **arguments)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("starts", [(0, 0, 0), (0, 3, 0)], ids=["full", "padded"])
def test_slots_behind_the_length_may_hold_anything(dtype, starts):
    case = Case(queries=40, keys=160, starts=(0, 0, 0), head_dim=HEAD_DIM)
    q, k, v = make_inputs(case, dtype=dtype, device=DEVICE)
    lengths = int32(160, 77, 40)
    for n, length in enumerate(lengths.tolist()):
        k[n, length:] = v[n, length:] = float("nan")
    arguments = {"kv_lens": lengths, "window": 30, "sink_tokens": 5, "kv_start": int32(*starts)}
    assert_gradients_like_the_reference((q, k, v), "triton", **arguments)


def test_rows_that_see_nothing_are_zero():
    q, k, v = (tokens(50, 2, torch.float16) for _ in range(3))
    none = swaa_attention(q, k, v, window=8, kv_lens=int32(0), q_start=0, backend="triton")
    assert not none.output.any()
    assert (none.lse == float("-inf")).all()
    empty = swaa_attention(q[:, :0], k, v, window=8, backend="triton")
    assert empty.output.shape == (1, 0, 2, HEAD_DIM)
    no_keys = swaa_attention(q, k[:, :0], v[:, :0], window=8, q_start=0, backend="triton")
    assert not no_keys.output.any()


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_two_backward_runs_give_the_same_bits(dtype):
    rows = 300 if GPU else 140  # five tiles in either direction
    case = Case(queries=rows, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    inputs = make_inputs(case, dtype=dtype, device=DEVICE)
    arguments = {"window": 64, "sink_tokens": 7, "full_from": rows - 20}
    first, second = (gradients(inputs, "triton", **arguments) for _ in range(2))
    assert torch.equal(first[1], second[1])
    for name, value in first[0].items():
        assert torch.equal(value, second[0][name]), name


def test_strided_inputs_and_gradients():
    wide = [tokens(100, heads * 2, torch.float16) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    q, k, v = (x[:, :, ::2] for x in wide)
    strided = swaa_attention(q, k, v, window=20, sink_tokens=3, backend="triton")
    dense = [x.contiguous() for x in (q, k, v)]
    plain = swaa_attention(*dense, window=20, sink_tokens=3, backend="triton")
    assert torch.equal(strided.output, plain.output)
    leaves = [x.detach().requires_grad_() for x in dense]
    swaa_attention(*leaves, window=20, backend="triton").output.sum().backward()  # expanded ones
    assert all(torch.isfinite(x.grad).all() for x in leaves)


def test_numbers_may_be_strided():
    q, k, v = make_inputs(Case(queries=40, starts=(0, 0, 0)), dtype=torch.float16, device=DEVICE)
    table = torch.tensor([[0, 30], [5, 35], [9, 40]], device=DEVICE)  # int64, one column each
    numbers = {"kv_start": table[:, 0], "full_from": table[:, 1]}
    strided = swaa_attention(q, k, v, window=9, sink_tokens=2, backend="triton", **numbers)
    numbers = {name: value.int().contiguous() for name, value in numbers.items()}
    plain = swaa_attention(q, k, v, window=9, sink_tokens=2, backend="triton", **numbers)
    assert torch.equal(strided.output, plain.output)


def test_hopper_kernel_of_one_stage_is_refused():
    """It would ask for keys whose place it holds, and never end."""
    q, k, v = tokens(40, HEADS, torch.float16), *(tokens(40, KV_HEADS, torch.float16),) * 2
    tile = Tile(block_m=128, block_n=64, stages=1)
    numbers = numbers_of(make_call(q, k, v, window=20))
    with pytest.raises(ValueError, match="at least 2 stages"):
        hopper.launch(q, k, v, q, q, numbers, 1.0, tile)


@pytest.mark.parametrize("case", [c for c in SHAPES if c.queries > 8], ids=lambda case: case.id)
def test_hopper_plan_covers_each_visible_key_once(case):
    q, k, v = make_inputs(case, dtype=torch.float16, device=DEVICE)
    call = make_call(q, k, v, **case.arguments(DEVICE))
    tile = Tile(block_m=64, block_n=16)
    plan, lefts = (
        x.tolist() for x in hopper.plan_tiles(numbers_of(call), q.shape[0], tile, q.device)
    )
    planned = [[[0] * k.shape[1] for _ in range(case.queries)] for _ in case.starts]
    for numbers, tile_lefts in zip(plan, lefts, strict=True):
        b, token, count, first, _, start, low, sinks, before, inner, blocks, sink_end, end = (
            numbers[:13]
        )
        for block in range(blocks):
            in_sinks = block < sinks
            key = start + block * 16 if in_sinks else low + (block - sinks) * 16
            limit = min(sink_end, end) if in_sinks else end
            whole = sinks + before <= block < sinks + before + inner
            for row in range(min(count, 64)):
                left, position = tile_lefts[row], first + row
                for j in range(key, min(key + 16, k.shape[1])):
                    kept = (left <= j or j < sink_end) and j <= position and j < limit
                    assert kept or not whole, "a block of the interior needs a mask"
                    planned[b][token + row][j] += kept
    assert planned == case.expected().long().tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="nothing is compiled in the interpreter")
def test_lengths_compile_nothing_anew():
    from swaa.attention.triton.hopper_kernel import hopper_kernel

    def compiled():
        caches = (prefill.prefill_kernel.device_caches, hopper_kernel.device_caches)
        return sum(len(cache[0]) for device in caches for cache in device.values())

    def run(length, window):
        q, k, v = (torch.randn(1, length, 2, 64, device=DEVICE).bfloat16() for _ in range(3))
        swaa_attention(q, k, v, window=window, sink_tokens=window // 8, backend="triton")

    run(100, 32)
    before = compiled()
    for length, window in ((17, 1), (128, 16), (1000, 100), (4096, 2048)):
        run(length, window)
    assert compiled() == before


def test_every_kernel_has_a_tile_for_every_head_dim():
    kernels = ("prefill", "dq", "dkdv", "sinks")
    every = [("prefill", torch.float32)]
    every += [(kernel, dtype) for kernel in kernels for dtype in (torch.float16, torch.bfloat16)]
    for kernel, dtype in every:
        for device in ("cpu", DEVICE):
            for head_dim in (64, 80, 96, 128, 256):
                tile = tile_for(kernel, torch.device(device), dtype, head_dim)
                assert tile.block_m > 0
    for path in tiles.TABLES.glob("*.json"):
        for kernel in tiles.load_table(path.stem).values():
            for sizes in kernel.values():
                assert all(Tile(**tile) for tile in sizes.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float64}, "is none of float16, bfloat16, float32"),
        ({"head_dim": 264}, "not a multiple of 8 up to 256"),
        ({"head_dim": 60}, "not a multiple of 8 up to 256"),
        ({"scale": -1.0}, "it must be positive"),
        ({"gradient": True}, "gradients are exact to 16 bits"),
        ({"v_dim": 32}, "values of head_dim 32 with keys of 64"),
        ({"strided": True}, "must lie side by side"),
    ],
    ids=["dtype", "large", "odd", "scale", "gradient", "values", "strides"],
)
def test_what_cannot_be_served_is_refused(change, message):
    head_dim = change.get("head_dim", 64)
    x = torch.zeros(1, 20, 1, head_dim, dtype=change.get("dtype", torch.float32), device=DEVICE)
    if change.get("strided"):
        x = x.transpose(1, 3).contiguous().transpose(1, 3)
    x.requires_grad_(change.get("gradient", False))
    v = x[..., : change.get("v_dim", head_dim)]
    with pytest.raises(BackendError, match=message):
        swaa_attention(x, x, v, window=8, scale=change.get("scale"), backend="triton")


def test_auto_never_picks_the_interpreter(monkeypatch):
    monkeypatch.setattr(backend, "serves_cpu", False)
    x = torch.zeros(1, 20, 1, 64)
    call = make_call(x, x, x, window=8)
    assert (
        choose_backend(call).refused["triton"] == "its kernels need a GPU, the tensors are on cpu"
    )
