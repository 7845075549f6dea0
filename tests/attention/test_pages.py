"""Pages chosen in decoding: the rule against plain loops, every backend against the rule."""

import importlib
import math
import weakref

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from swaa.attention import swaa_attention
from swaa.attention.api import make_call
from swaa.attention.pages import PAGE, choosing, page_mask, page_statistics
from swaa.testing import Case, assert_close_to_oracle, make_inputs
from tests.attention.judge import BACKENDS, DEVICE

SHAPES = (
    Case(queries=1, keys=250, window=40, sink_tokens=5, heads=4, kv_heads=2),
    Case(queries=3, keys=257, window=33, sink_tokens=16, heads=4, kv_heads=1),
    Case(queries=3, keys=180, window=20, starts=(0, 3, 70), kv_heads=1),
    Case(queries=2, keys=130, window=7, sink_tokens=9),  # a window of less than a page
    Case(queries=18, keys=150, window=31, sink_tokens=33, heads=1, kv_heads=1, head_dim=80),
    Case(queries=1, keys=90, window=300, sink_tokens=4),  # a window beyond the length
    Case(queries=1, keys=90, window=24, sink_tokens=4, head_dim=128, heads=8, kv_heads=1),
)
KEYS = 48


def call_of(case, dtype=torch.float32, **more):
    inputs = make_inputs(case, dtype=dtype, device=DEVICE)
    arguments = {**case.arguments(DEVICE), "full_from": 0, "decode_keys": KEYS, **more}
    return make_call(*inputs, **arguments), inputs, arguments


def page_scores(call, b, kv_head, row, start):
    """Mean and standard deviation, products, the best head: as plain loops."""
    group = call.q.shape[2] // call.k.shape[2]
    keys = call.k[b, start:, kv_head].double()
    scores = []
    for page in range(len(keys) // PAGE):
        rows = keys[page * PAGE : page * PAGE + PAGE]
        mean = rows.mean(0)
        std = (rows - mean).square().mean(0).sqrt()
        heads = [
            (q := call.q[b, row, kv_head * group + g].double()) @ mean + q.abs() @ std
            for g in range(group)
        ]
        scores.append(float(max(heads)))
    return scores


def expected(case, call, decode_from=0):
    """What each row sees, as plain loops: bool ``[batch, kv_heads, queries, keys]``."""
    seen = torch.zeros(
        len(case.starts), case.kv_heads, case.queries, case.key_count, dtype=torch.bool
    )
    first = case.key_count - case.queries
    for b, start in enumerate(case.starts):
        for row in range(case.queries):
            i = first + row - start  # from the first real key on
            pages = [
                page
                for page in range(case.key_count // PAGE)
                if (page + 1) * PAGE > case.sink_tokens
                and page * PAGE < i + 1 - case.window
                and (page + 1) * PAGE <= i + 1
            ]
            for kv_head in range(case.kv_heads):
                row_seen = seen[b, kv_head, row, start:]
                if len(pages) <= KEYS // PAGE or first + row < decode_from:
                    row_seen[: i + 1] = True
                    continue
                scores = page_scores(call, b, kv_head, row, start)
                best = sorted(pages, key=lambda page: -scores[page])[: KEYS // PAGE]
                row_seen[max(0, i + 1 - case.window) : i + 1] = True
                row_seen[: min(case.sink_tokens, i + 1)] = True
                for page in best:
                    row_seen[page * PAGE : page * PAGE + PAGE] = True
    return seen


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_the_rule_is_that_of_plain_loops(case):
    call, _, _ = call_of(case)
    mask = page_mask(call).cpu()
    assert torch.equal(mask, expected(case, call))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_values(case, backend):
    call, inputs, arguments = call_of(case)
    mask = expected(case, call).to(DEVICE)
    oracle = masked(inputs, mask, double=True)
    # PyTorch's own SDPA is less exact on GPUs than a softmax written out.
    eager = by_sdpa(inputs, mask) if backend == "sdpa" else masked(inputs, mask)
    output = swaa_attention(*inputs, backend=backend, **arguments).output
    assert_close_to_oracle(output, oracle, eager)


def by_sdpa(inputs, mask):
    """What :func:`masked` computes, by PyTorch's SDPA."""
    q, k, v = (x.transpose(1, 2) for x in inputs)
    mask = mask.repeat_interleave(q.shape[1] // k.shape[1], 1)
    output = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return output.nan_to_num(0.0).transpose(1, 2)


def masked(inputs, mask, double=False):
    """Softmax over the keys of a mask for each key head; rows of padding are zero."""
    q, k, v = (x.double() if double else x for x in inputs)
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, *(x.repeat_interleave(group, 2) for x in (k, v))))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    mask = mask.repeat_interleave(group, 1)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).nan_to_num(0.0)
    return (weights @ v).transpose(1, 2)


def test_where_the_budget_covers_the_pages_it_is_full_decode():
    case = Case(queries=3, keys=200, window=40, sink_tokens=5, starts=(0, 30))
    call, inputs, arguments = call_of(case, decode_keys=160)
    assert not bool(choosing(call, call.positions()).any())
    arguments = {**arguments, "decode_keys": 160}
    for backend in BACKENDS:
        full = {**arguments, "decode_keys": 0}
        assert torch.equal(
            swaa_attention(*inputs, backend=backend, **arguments).output,
            swaa_attention(*inputs, backend=backend, **full).output,
        )


@pytest.mark.parametrize("decode_from", [180, 170, 300, torch.tensor([176, 190])])
@pytest.mark.parametrize("selected_keys", [0, 64])
def test_only_rows_from_decode_from_on_choose(decode_from, selected_keys):
    case = Case(queries=40, keys=210, window=20, sink_tokens=5, starts=(0, 12), kv_heads=1)
    if isinstance(decode_from, torch.Tensor):
        decode_from = decode_from.to(DEVICE, torch.int32)
    more = {"decode_from": decode_from, "full_from": decode_from, "selected_keys": selected_keys}
    call, inputs, arguments = call_of(case, **more)
    reference = swaa_attention(*inputs, backend="reference", **arguments).output
    plain = {**arguments, "decode_keys": 0, "decode_from": None}
    without = swaa_attention(*inputs, backend="reference", **plain).output
    late = call.positions() >= torch.as_tensor(decode_from, device=DEVICE).reshape(-1, 1)
    late = late.expand(2, -1)
    torch.testing.assert_close(reference[~late], without[~late])
    assert not late.any() or not torch.allclose(reference[late], without[late])
    output = swaa_attention(*inputs, backend="sdpa", **arguments).output
    torch.testing.assert_close(output, reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_and_pages_of_a_cache_are_read_where_they_lie(backend):
    case = Case(queries=2, keys=224, window=20, sink_tokens=5, starts=(0, 0), heads=4)
    _, (q, k, v), arguments = call_of(case)
    expected = swaa_attention(q, k, v, backend=backend, **arguments).output
    statistics = page_statistics(k)
    given = {**arguments, "page_statistics": statistics}
    assert torch.equal(swaa_attention(q, k, v, backend=backend, **given).output, expected)
    other = {**arguments, "page_statistics": -statistics}
    assert not torch.allclose(swaa_attention(q, k, v, backend=backend, **other).output, expected)
    size, blocks = 32, 7  # of a cache's pages, which hold two each
    order = torch.randperm(2 * blocks, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    table = torch.empty_like(order)
    table[order] = torch.arange(2 * blocks, device=DEVICE)
    paged = [x.unflatten(1, (blocks, size)).flatten(0, 1)[order] for x in (k, v)]
    stored = statistics.unflatten(1, (blocks, 2)).flatten(0, 1)[order]
    output = swaa_attention(
        q,
        *paged,
        block_table=table.view(2, blocks).int(),
        kv_lens=torch.full((2,), 224, dtype=torch.int32, device=DEVICE),
        backend=backend,
        **{**arguments, "page_statistics": stored},
    ).output
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs Triton")
def test_no_memory_is_used_twice_in_a_call(monkeypatch):
    """Kernels of a call overlap, so what one has given back must not be written by the next."""
    decode = importlib.import_module("swaa.attention.triton.decode")
    call, _, _ = call_of(SHAPES[0])
    given, addresses, make = [], [], torch.empty

    def empty(*shape, **options):
        """Memory that was given back is given out again at once, as PyTorch does on a GPU."""
        sizes = shape[0] if isinstance(shape[0], tuple) else shape
        free = [buffer for buffer, user in given if user() is None]
        buffer = free[0] if free else make(1 << 20, dtype=torch.uint8, device=DEVICE)
        kind = options["dtype"]
        tensor = buffer[: math.prod(sizes) * kind.itemsize].view(kind).view(sizes)
        given[:] = [one for one in given if one[0] is not buffer]
        given.append((buffer, weakref.ref(tensor)))
        addresses.append(tensor.data_ptr())
        return tensor

    expected = decode.attend(call).output
    monkeypatch.setattr(torch, "empty", empty)
    output = decode.attend(call).output
    monkeypatch.undo()
    assert torch.equal(output, expected)
    assert len(addresses) >= 8  # output, lse, three parts, pages, scores, what the choice gathers
    assert len(set(addresses)) == len(addresses)


def test_packed_sequences_choose_apart():
    case = Case(queries=210, window=20, sink_tokens=5, starts=(0,), kv_heads=1)
    _, (q, k, v), arguments = call_of(case)
    offsets = torch.tensor([0, 90, 210], dtype=torch.int32, device=DEVICE)
    begin = torch.tensor([85, 115], dtype=torch.int32, device=DEVICE)
    numbers = {**arguments, "full_from": begin, "decode_from": begin}
    for backend in BACKENDS:
        packed = swaa_attention(
            q, k, v, cu_seqlens_q=offsets, cu_seqlens_k=offsets, backend=backend, **numbers
        ).output
        for n, part in enumerate((slice(0, 90), slice(90, 210))):
            one = {**arguments, "full_from": int(begin[n]), "decode_from": int(begin[n])}
            alone = swaa_attention(q[:, part], k[:, part], v[:, part], backend=backend, **one)
            torch.testing.assert_close(packed[:, part], alone.output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decode_keys": 24}, "pages of 16: give a multiple"),
        ({"decode_keys": -16}, "at least 0"),
        ({"window": None}, "besides a window"),
        ({"selected_keys": 64}, "give decode_from"),
        ({"page_statistics": torch.zeros(1, 4, 2, 2, 32)}, "page_statistics has shape"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        call_of(Case(queries=1, keys=90, window=24), **arguments)
