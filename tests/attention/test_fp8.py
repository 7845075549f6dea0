"""Pages in fp8: each value is read exactly, and factors of keys and values come in from outside."""

import importlib.util

import pytest
import torch

from swaa.attention import swaa_attention
from swaa.attention.call import FP8
from swaa.testing import assert_close_to_oracle, keys_seen

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BACKENDS = ["sdpa"]
if importlib.util.find_spec("triton"):
    BACKENDS.append("triton")
# Triton's interpreter multiplies no matrices in bfloat16.
DTYPES = [torch.float16, torch.float32, *([torch.bfloat16] if GPU else [])]
PAGE, KV_HEADS = 16, 2
K_SCALE, V_SCALE = 0.03, 0.7
LENGTHS, ROWS = (150, 40, 17, 90), (1, 40, 3, 7)
MASKS = {
    "sliding": {"window": 20, "sink_tokens": 6},
    "full": {"window": None},
    "full_decode": {"window": 20, "sink_tokens": 6, "full_from": (149, 1000, 0, 85)},
    "chosen": {"window": 20, "sink_tokens": 6, "full_from": (0, 0, 0, 0), "decode_keys": 48},
}

pytestmark = pytest.mark.skipif(
    GPU and torch.cuda.get_device_capability() < (8, 9), reason="the GPU knows no fp8"
)


def pages_of(*heads_first, layout="vllm", head_dim=64):
    """Pages of random numbers in fp8, in a random order; slots that nobody owns are NaN.

    Returns:
        Keys and values, and the block table.
    """
    counts = [-(-length // PAGE) for length in LENGTHS]
    total = sum(counts) + 2
    if layout == "vllm":
        pool = torch.full((total, KV_HEADS, PAGE, 2 * head_dim), float("nan")).to(DEVICE, FP8)
        keys, values = pool.transpose(1, 2).split(head_dim, dim=3)
    else:
        pool = torch.full((2, total, PAGE, KV_HEADS, head_dim), float("nan")).to(DEVICE, FP8)
        keys, values = pool
    order = torch.randperm(sum(counts)).tolist()
    table = torch.full((len(LENGTHS), max(counts) + 1), total - 1, dtype=torch.int32)
    for n, length in enumerate(LENGTHS):
        for i in range(counts[n]):
            table[n, i] = order.pop()
            rows = min(PAGE, length - i * PAGE)
            for x, scale in ((keys, K_SCALE), (values, V_SCALE)):
                numbers = torch.randn(rows, KV_HEADS, head_dim) / scale
                x[table[n, i], :rows] = numbers.to(DEVICE, FP8)
    return keys, values, table.to(DEVICE)


def arguments_of(name, table):
    offsets = torch.tensor([0, *ROWS]).cumsum(0)
    numbers = {"cu_seqlens_q": offsets, "kv_lens": torch.tensor(LENGTHS)} | {
        key: torch.tensor(value) for key, value in MASKS[name].items() if isinstance(value, tuple)
    }
    numbers = {key: value.to(DEVICE, torch.int32) for key, value in numbers.items()}
    return {**MASKS[name], **numbers, "block_table": table}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MASKS)
def test_values_are_those_of_the_keys_times_their_factor(name, backend, dtype):
    keys, values, table = pages_of()
    q = torch.randn(1, sum(ROWS), 4, 64).to(DEVICE, dtype)
    arguments = arguments_of(name, table)
    scale = 64**-0.5
    given = {**arguments, "scale": scale * K_SCALE, "backend": backend}
    output = swaa_attention(q, keys, values, **given).output * V_SCALE

    def reference(dtype):
        k, v = (x.double() for x in (keys, values))
        k, v = (k * K_SCALE).to(dtype), (v * V_SCALE).to(dtype)
        return swaa_attention(q.to(dtype), k, v, **arguments, backend="reference").output

    assert_close_to_oracle(output, reference(torch.double), reference(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("layout", "head_dim"), [("vllm", 80), ("plain", 128)])
@pytest.mark.parametrize("name", MASKS)
def test_bits_are_those_of_the_same_keys_in_the_type_of_the_queries(
    name, head_dim, layout, backend
):
    keys, values, table = pages_of(layout=layout, head_dim=head_dim)
    q = torch.randn(1, sum(ROWS), 4, head_dim).to(DEVICE, torch.float16)
    arguments = {**arguments_of(name, table), "backend": backend}
    found = swaa_attention(q, keys, values, **arguments)
    expected = swaa_attention(q, keys.half(), values.half(), **arguments)
    if GPU:  # its compiler may order sums otherwise
        torch.testing.assert_close(found.output, expected.output, atol=0.1, rtol=2e-3)
    else:
        assert torch.equal(found.output, expected.output)
        assert found.lse is None or torch.equal(found.lse, expected.lse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_number_of_fp8_is_read_exactly(backend, dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes[(codes & 127) != 127].view(FP8)  # without NaN
    filled = torch.cat([numbers, numbers[:2]]).view(1, PAGE, 1, 16).to(DEVICE)
    rows = {"kv_lens": torch.tensor([PAGE], dtype=torch.int32, device=DEVICE)}
    rows |= {"block_table": torch.zeros(1, 1, dtype=torch.int32, device=DEVICE)}
    q = torch.zeros(1, PAGE, 1, 16, dtype=dtype, device=DEVICE)
    # Each row sees its own key alone: its output is that key's value.
    seen = swaa_attention(q, filled, filled, window=1, backend=backend, **rows).output
    assert torch.equal(seen[0, :, 0].float(), filled[0, :, 0].float())


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("rows", [1, 200])
@pytest.mark.parametrize("window", [None, 2048])
def test_long_pages_on_a_gpu(window, rows):
    pages = 1250
    x = torch.randn(2, pages, PAGE, 8, 128, device=DEVICE) / K_SCALE
    keys, values = x.to(FP8)
    table = torch.randperm(pages, dtype=torch.int32, device=DEVICE)[None]
    lens = torch.tensor([pages * PAGE - 3], dtype=torch.int32, device=DEVICE)
    q = torch.randn(1, rows, 32, 128, dtype=torch.bfloat16, device=DEVICE)
    given = {"window": window, "sink_tokens": 64, "block_table": table, "kv_lens": lens}
    scale = 128**-0.5 * K_SCALE
    found = swaa_attention(q, keys, values, scale=scale, backend="triton", **given).output

    def reference(dtype):
        k, v = keys.to(dtype), values.to(dtype)
        call = {"scale": scale, "backend": "reference", **given}
        return swaa_attention(q.to(dtype), k, v, **call).output

    assert_close_to_oracle(found, reference(torch.double), reference(torch.bfloat16))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_rows_see_exactly_the_rule(rows, backend):
    keys = 101

    def attention(q, k, v):
        count = -(-keys // PAGE)
        order = torch.randperm(count)
        padding = (0, 0, 0, 0, 0, count * PAGE - keys)
        pages = []
        for x in (k, v):
            pool = torch.nn.functional.pad(x[0], padding, value=float("nan"))
            made = torch.empty(count, PAGE, 1, 64, dtype=FP8, device=DEVICE)
            made[order] = pool.to(FP8).unflatten(0, (count, PAGE))
            pages.append(made)
        table = order.to(DEVICE, torch.int32)[None]
        lens = torch.tensor([keys], dtype=torch.int32, device=DEVICE)
        given = {"window": 17, "sink_tokens": 5, "full_from": 99, "backend": backend}
        return swaa_attention(q, *pages, **given, block_table=table, kv_lens=lens)

    seen = keys_seen(attention, batch=1, queries=rows, keys=keys, device=DEVICE)
    i = torch.arange(keys - rows, keys)[:, None]
    j = torch.arange(keys)
    assert torch.equal(seen[0], (j <= i) & ((i - j < 17) | (j < 5) | (i >= 99)))


@pytest.mark.parametrize(
    ("dtypes", "paged", "reason"),
    [
        ((torch.float16, FP8, FP8), False, "k is torch.float8_e4m3fn, .*: give block_table, or"),
        ((FP8, FP8, FP8), True, "q is torch.float8_e4m3fn, which only keys and values in pages"),
        ((torch.float16, FP8, torch.float16), True, "k is torch.float8_e4m3fn and v torch.float16"),
        ((torch.float16, torch.float16, FP8), True, "k is torch.float16 and v torch.float8_e4m3fn"),
        ((torch.float16, torch.float8_e5m2, torch.float8_e5m2), True, "k is torch.float8_e5m2 and"),
    ],
    ids=["dense", "queries", "keys", "values", "e5m2"],
)
def test_other_uses_of_fp8_are_refused(dtypes, paged, reason):
    q, k, v = (torch.zeros(1, PAGE, 1, 16).to(dtype) for dtype in dtypes)
    rows = {"block_table": torch.zeros(1, 1, dtype=torch.int32), "kv_lens": torch.tensor([PAGE])}
    with pytest.raises(ValueError, match=reason):
        swaa_attention(q, k, v, window=4, **(rows if paged else {}))


def test_gpus_without_fp8_are_refused(monkeypatch):
    decode = pytest.importorskip("swaa.attention.triton.decode")
    monkeypatch.setattr(decode, "_reads_fp8", lambda device: False)
    keys, values, table = pages_of()
    q = torch.randn(1, sum(ROWS), 4, 64).to(DEVICE, torch.float16)
    with pytest.raises(ValueError, match=r"compute capability 8\.9 or more; these can: sdpa"):
        swaa_attention(q, keys, values, **arguments_of("sliding", table), backend="triton")
