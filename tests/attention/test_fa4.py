"""FlashAttention-4: its block lists against a plain loop, its refusals, and the kernel on a GPU."""

from dataclasses import replace

import pytest
import torch

from swaa.attention import block_lists, fa4, swaa_attention
from swaa.attention.api import make_call
from swaa.attention.block_lists import Rows
from swaa.testing import SHAPES, Case, assert_sees_the_rule, keys_seen, make_inputs
from tests.attention.judge import assert_gradients_like_the_reference

MASKS = (
    Case(queries=300, window=100, sink_tokens=0),
    Case(queries=300, window=100, sink_tokens=10),
    Case(queries=300, window=1, sink_tokens=0),
    Case(queries=300, window=64, sink_tokens=64),
    Case(queries=300, window=65, sink_tokens=63),
    Case(queries=400, window=128, sink_tokens=200),
    Case(queries=300, window=2000, sink_tokens=4),
    Case(queries=400, window=130, sink_tokens=70, full_from=350),
    Case(queries=400, window=130, sink_tokens=70, full_from=300, full_until=350),
    Case(queries=400, window=130, sink_tokens=70, full_from=0, full_until=1),
    Case(queries=200, keys=500, window=130, sink_tokens=70, full_from=450),
    Case(queries=1, window=1),
    Case(queries=130, keys=441, window=64, sink_tokens=1),
)
BLOCKS = [(64, 64), (128, 32), (96, 48), (32, 128)]


def rows_of(case: Case) -> Rows:
    position = torch.arange(case.key_count - case.queries, case.key_count)[None]
    assert case.window is not None
    left = position - case.window + 1
    if case.full_from is not None:
        until = case.full_until or case.key_count
        full = (position >= case.full_from) & (position < until)
        left = torch.where(full, 0, left)
    return Rows(position, left, torch.zeros_like(position))


def packed_rows(lengths: list[int], window: int) -> Rows:
    start = torch.cat([torch.full((n,), sum(lengths[:i])) for i, n in enumerate(lengths)])[None]
    position = torch.arange(sum(lengths))[None]
    return Rows(position, position - window + 1, start)


def seen_by(rows: Rows, keys: int, sink_tokens: int) -> torch.Tensor:
    """The mask as a plain loop, bool [rows, keys]."""
    # Over numbers and lists: to read and write single elements of tensors takes far longer.
    numbers = zip(*(each[0].tolist() for each in rows), strict=True)
    return torch.tensor(
        [
            [start <= j <= position and (j >= left or j < start + sink_tokens) for j in range(keys)]
            for position, left, start in numbers
        ]
    )


def kinds_of_blocks(seen: torch.Tensor, block_q: int, block_k: int) -> torch.Tensor:
    """0 where nobody sees anything of a block, 1 where somebody does, 2 where everyone sees all."""
    kinds = []
    for rows in seen.split(block_q):
        blocks = rows.split(block_k, dim=1)
        whole = [b.all() and b.shape[1] == block_k for b in blocks]
        kinds.append([2 if w else int(b.any()) for w, b in zip(whole, blocks, strict=True)])
    return torch.tensor(kinds)


def kinds_of_lists(lists: block_lists.BlockLists, width: int) -> torch.Tensor:
    kinds = torch.zeros(lists.partial.shape[1], width, dtype=torch.long)
    for m in range(len(kinds)):
        for kind, count, index in ((1, *lists[:2]), (2, *lists[2:])):
            listed = index[0, m, : int(count[0, m])]
            assert listed.tolist() == sorted(set(listed.tolist())), "not in order, or twice"
            kinds[m, listed.long()] += kind
    return kinds


def assert_lists_are_exact(rows: Rows, keys: int, sink_tokens: int, window=None) -> None:
    """For every size of blocks; of the length that ``window`` allows, where one is given."""
    seen = seen_by(rows, keys, sink_tokens)
    for block_q, block_k in BLOCKS:
        sizes = {"sink_tokens": sink_tokens, "block_q": block_q, "block_k": block_k}
        expected = kinds_of_blocks(seen, block_q, block_k)
        most = expected.shape[1]
        if window is not None:
            most = block_lists.most_key_blocks(keys, window=window, **sizes)
        ranges = block_lists.block_ranges(rows, **sizes)
        lists = block_lists.key_lists(ranges, most=most)
        assert torch.equal(kinds_of_lists(lists, expected.shape[1]), expected), sizes
        lists = block_lists.query_lists(ranges, key_blocks=expected.shape[1])
        assert torch.equal(kinds_of_lists(lists, expected.shape[0]), expected.T), sizes


@pytest.mark.parametrize("case", MASKS, ids=lambda case: case.id)
def test_lists_hold_exactly_the_visible_blocks(case):
    window = case.window if case.full_from is None else None
    assert_lists_are_exact(rows_of(case), case.key_count, case.sink_tokens, window)


@pytest.mark.parametrize("lengths", [[300, 1, 200, 77], [64, 64], [500]], ids=str)
@pytest.mark.parametrize("sink_tokens", [0, 3, 70])
def test_lists_stop_at_the_bounds_of_packed_sequences(lengths, sink_tokens):
    rows = packed_rows(lengths, window=90)
    assert_lists_are_exact(rows, sum(lengths), sink_tokens, window=90)


def test_lists_of_a_batch_differ_where_full_rows_do():
    one, other = (rows_of(replace(MASKS[7], full_from=first)) for first in (350, 200))
    rows = Rows(*(torch.cat(pair) for pair in zip(one, other, strict=True)))
    sizes = {"sink_tokens": 70, "block_q": 64, "block_k": 64}
    both = block_lists.key_lists(block_lists.block_ranges(rows, **sizes), most=7)
    for n, single in enumerate((one, other)):
        alone = block_lists.key_lists(block_lists.block_ranges(single, **sizes), most=7)
        for together, apart in zip(both, alone, strict=True):
            assert torch.equal(together[n], apart[0])


class FakeGpuTensor(torch.Tensor):
    """A CPU tensor that claims to lie on a GPU, so that refusals can be read without one."""

    is_cuda = True


def fake_inputs(dtype=torch.bfloat16, rows=200, keys=200, head_dim=128, grad=False):
    shapes = (1, rows, 4, head_dim), (1, keys, 2, head_dim), (1, keys, 2, head_dim)
    return [
        torch.zeros(shape, dtype=dtype, requires_grad=grad).as_subclass(FakeGpuTensor)
        for shape in shapes
    ]


@pytest.mark.parametrize(
    ("inputs", "arguments", "reason"),
    [
        ({"dtype": torch.float32}, {}, "float32"),
        ({"head_dim": 60}, {}, "head_dim 60"),
        ({"rows": 8}, {}, "8 query rows"),
        ({}, {"kv_lens": torch.tensor([50])}, "kv_lens"),
        ({}, {"kv_start": 3}, "kv_start"),
        ({"grad": True}, {"sink_tokens": 3}, "deterministic"),
        ({"grad": True, "head_dim": 80}, {}, "backward is tested at head_dim 128 and 256"),
    ],
    ids=["dtype", "head_dim", "few rows", "kv_lens", "padding", "deterministic", "backward"],
)
def test_what_it_cannot_serve_is_refused_with_the_reason(inputs, arguments, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    refused = fa4.refusal(make_call(*fake_inputs(**inputs), window=10, **arguments))
    assert refused is not None
    assert reason in refused


def test_a_cpu_and_an_untested_gpu_are_refused(monkeypatch):
    assert "needs a GPU" in (
        fa4.refusal(make_call(*(torch.zeros(1, 9, 2, 64),) * 3, window=4)) or ""
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert "Hopper" in (fa4.refusal(make_call(*fake_inputs(), window=4)) or "")


def test_a_missing_package_is_answered_with_its_install_line(monkeypatch):
    def fail():
        raise ImportError("No module named 'flash_attn'")

    monkeypatch.setattr(fa4, "_interface", fail)
    assert "pip install '.[fa4]'" in (fa4.missing() or "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"window": None}, (None, None)),
        ({"window": 30}, (29, 0)),
        ({"window": 30, "full_from": 100}, (29, 0)),
        ({"window": 30, "full_from": 10, "full_until": 20, "q_start": 20}, (29, 0)),
        ({"window": 90, "sink_tokens": 30}, (None, None)),
        ({"window": 30, "full_from": 0}, (None, None)),
        ({"window": 30, "sink_tokens": 1}, None),
        ({"window": 30, "full_from": 99}, None),
        ({"window": 30, "full_from": torch.tensor([200])}, None),
        ({"window": 30, "left": torch.zeros(1, 100)}, None),
        ({"window": 30, "q_start": 3}, None),
    ],
)
def test_native_paths_are_taken_where_the_mask_is_theirs(arguments, expected):
    keys = 100 + arguments.get("q_start", 0) * (arguments.get("q_start") == 20)
    q, k = torch.zeros(1, 100, 4, 64), torch.zeros(1, keys, 2, 64)
    assert fa4._native_window(make_call(q, k, k, **arguments)) == expected


pytestmark = [
    pytest.mark.filterwarnings("ignore:Argument aux_data:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:flash_attn"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:quack"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:cutlass"),
]

needs_fa4 = pytest.mark.skipif(
    not torch.cuda.is_available() or fa4.missing() is not None,
    reason="needs a Hopper GPU and FlashAttention-4",
)
GPU_CASES = (
    *(
        case
        for case in SHAPES
        if case.queries > fa4.FEW_ROWS and not any(case.starts) and case.head_dim in fa4.HEAD_DIMS
    ),
    Case(queries=1000, window=130, sink_tokens=70, heads=4, kv_heads=1, head_dim=128),
    Case(queries=1000, window=130, sink_tokens=0, heads=4, kv_heads=1, head_dim=128),
    Case(queries=1000, window=128, sink_tokens=128, full_from=872, head_dim=128),
    Case(queries=999, window=100, sink_tokens=200, full_from=600, full_until=800, head_dim=128),
    Case(queries=300, keys=1000, window=128, sink_tokens=10, full_from=950, heads=4, head_dim=128),
    Case(queries=700, window=64, sink_tokens=5, full_from=600, head_dim=256),
    Case(queries=700, window=64, sink_tokens=5, head_dim=80),
    Case(queries=300, window=150, sink_tokens=20, full_from=290, head_dim=128),
    Case(queries=4100, window=128, sink_tokens=10, heads=1, kv_heads=1, head_dim=128),
)


@pytest.mark.gpu
@needs_fa4
@pytest.mark.parametrize("case", GPU_CASES, ids=lambda case: case.id)
def test_rows_see_exactly_the_keys_of_the_rule(case):
    assert_sees_the_rule(case, backend="fa4", dtype=torch.bfloat16, device="cuda")


@pytest.mark.gpu
@needs_fa4
@pytest.mark.parametrize(
    "case",
    [case for case in GPU_CASES if case.head_dim in fa4.BACKWARD_HEAD_DIMS and case.queries < 2000],
    ids=lambda case: case.id,
)
def test_output_and_gradients_are_as_exact_as_eager(case):
    torch.use_deterministic_algorithms(False)
    inputs = make_inputs(case, dtype=torch.bfloat16, device="cuda")
    arguments = case.arguments("cuda")
    assert_gradients_like_the_reference(inputs, "fa4", with_lse=False, **arguments)
    assert swaa_attention(*inputs, backend="fa4", **arguments).lse is not None


def shown_by(backend, batch, tokens, arguments):
    return keys_seen(
        lambda q, k, v: swaa_attention(q, k, v, backend=backend, **arguments),
        **{"batch": batch, "queries": tokens, "keys": tokens},
        **{"heads": 4, "kv_heads": 1, "head_dim": 128},
        dtype=torch.bfloat16,
        device="cuda",
    )


@pytest.mark.gpu
@needs_fa4
@pytest.mark.parametrize("sink_tokens", [0, 40])
@pytest.mark.parametrize("full_rows", [False, True])
def test_packed_sequences_and_rows_of_their_own(sink_tokens, full_rows):
    lengths = [300, 1, 200, 77]
    ends = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    arguments = {"window": 90, "sink_tokens": sink_tokens}
    arguments |= {"cu_seqlens_q": ends, "cu_seqlens_k": ends}
    if full_rows:
        arguments["full_from"] = torch.tensor([280, 5, 100, 70], device="cuda").int()
    assert torch.equal(*(shown_by(name, 1, 578, arguments) for name in ("fa4", "reference")))


@pytest.mark.gpu
@needs_fa4
@pytest.mark.parametrize("full_from", [None, 350, [350, 390]], ids=str)
def test_a_batch_of_sequences(full_from):
    if isinstance(full_from, list):
        full_from = torch.tensor(full_from, dtype=torch.int32, device="cuda")
    arguments = {"window": 64, "sink_tokens": 8, "full_from": full_from}
    assert torch.equal(*(shown_by(name, 2, 400, arguments) for name in ("fa4", "reference")))


@pytest.mark.gpu
@needs_fa4
def test_numbers_may_change_without_compiling_again_or_keeping_stale_lists():
    case = Case(queries=400, window=64, sink_tokens=8, heads=4, kv_heads=1, head_dim=128)
    q, k, v = make_inputs(case, dtype=torch.bfloat16, device="cuda")
    full_from = torch.tensor([399], dtype=torch.int32, device="cuda")
    for first in (399, 300, 200):
        full_from.fill_(first)
        for value in (first, full_from):
            arguments = {"window": 64, "sink_tokens": 8, "full_from": value}
            actual = swaa_attention(q, k, v, backend="fa4", **arguments).output
            expected = swaa_attention(q, k, v, backend="reference", **arguments).output
            torch.testing.assert_close(actual, expected, atol=2e-2, rtol=2e-2)
