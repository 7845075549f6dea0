"""Selected rows: exact over given lists in every backend, and lists equal to the reference's."""

import functools
import itertools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from swaa.attention import Selection, swaa_attention
from swaa.attention.api import make_call
from swaa.attention.selection import row_block_count, select
from swaa.testing import Case, assert_close_to_oracle, keys_seen_by_head, make_inputs
from tests.attention.judge import (
    BACKENDS,
    DEVICE,
    GPU,
    assert_gradients_like_the_reference,
    paged,
)

FAST = BACKENDS if GPU else BACKENDS[:2]
"""Backends that serve some hundred rows within seconds here."""

SHAPES = (
    Case(queries=260, window=70, sink_tokens=9, heads=4, kv_heads=2),
    Case(queries=250, window=64, sink_tokens=64, full_from=241),
    Case(queries=200, window=20, heads=2, kv_heads=1, full_from=130, full_until=140),
    Case(queries=200, window=65, sink_tokens=5, starts=(0, 1, 70, 199), kv_heads=1),
    Case(queries=70, keys=261, window=65, sink_tokens=5, kv_heads=1),  # begins within a block
    Case(queries=3, keys=250, window=40, sink_tokens=5, heads=4, kv_heads=2),
    Case(queries=63, keys=257, window=50, sink_tokens=9, full_from=250, starts=(0, 100)),
    Case(queries=100, window=300, sink_tokens=4),  # a window beyond the length
    Case(queries=140, window=1, sink_tokens=1, head_dim=80),
)

INTERPRETED = (
    Case(queries=140, window=20, sink_tokens=5, full_from=135, heads=2, kv_heads=1),
    Case(queries=20, keys=150, window=40, sink_tokens=5, starts=(0, 15), heads=2, kv_heads=1),
    Case(queries=3, keys=140, window=40, sink_tokens=5, heads=2, kv_heads=2),
)
"""What Triton's interpreter serves within seconds; on a GPU its kernels take all shapes."""


def shapes(backends):
    """Every backend with each of its shapes."""
    return [
        pytest.param(case, backend, id=f"{backend}-{case.id}")
        for backend in backends
        for case in (INTERPRETED if backend == "triton" and not GPU else SHAPES)
    ]


def random_lists(case, seed=0):
    """Lists that no scoring would make: window blocks, later blocks, none at all."""
    call = call_of(case)
    shape = (len(case.starts), case.kv_heads, row_block_count(call))
    generator = torch.Generator().manual_seed(seed)
    most = 4
    key_blocks = -(-case.key_count // 64)
    order = torch.rand(*shape, key_blocks + most, generator=generator).argsort(-1)[..., :most]
    blocks = torch.where(order < key_blocks, order, 0)
    count = torch.randint(0, min(most, key_blocks) + 1, shape, generator=generator)
    count[:, 0, -1] = 1
    for n in range(1, most):  # no block twice in a list
        twice = (blocks[..., :n] == blocks[..., n : n + 1]).any(-1)
        count = torch.where(twice, count.clamp(max=n), count)
    return Selection(blocks.int().to(DEVICE), count.int().to(DEVICE))


def call_of(case, **more):
    inputs = make_inputs(case, dtype=torch.float32, device=DEVICE)
    return make_call(*inputs, **case.arguments(DEVICE), **more)


def expected(case, selection):
    """The rule as a plain loop: bool ``[batch, heads, queries, keys]``."""
    seen = case.expected()[:, None].repeat(1, case.heads, 1, 1)
    first = case.key_count - case.queries
    for b, start in enumerate(case.starts):
        first_block = max(0, first - start) // 128
        for row in range(case.queries):
            i = first + row
            if i < start:
                continue
            r = (i - start) // 128 - first_block
            for head in range(case.heads):
                kv_head = head // (case.heads // case.kv_heads)
                count = int(selection.counts[b, kv_head, r])
                for block in selection.blocks[b, kv_head, r, :count].tolist():
                    begin = start + 64 * block
                    seen[b, head, row, begin : min(begin + 64, i + 1)] = True
    return seen


@pytest.mark.parametrize(("case", "backend"), shapes(BACKENDS))
def test_rows_see_the_blocks_that_were_chosen_for_them(case, backend):
    selection = random_lists(case)
    assert int(selection.counts.sum()) > 0
    seen = keys_seen_by_head(
        lambda q, k, v: swaa_attention(
            q, k, v, selection=selection, backend=backend, **case.arguments(DEVICE)
        ),
        batch=len(case.starts),
        queries=case.queries,
        keys=case.key_count,
        heads=case.heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        device=DEVICE,
    )
    wrong = (seen != expected(case, selection)).nonzero()
    assert not len(wrong), f"first wrong (sequence, head, row, key): {wrong[0].tolist()}"


@pytest.mark.parametrize(("case", "backend"), shapes(BACKENDS[1:]))
def test_values_over_given_lists(case, backend):
    selection = random_lists(case, seed=1)
    inputs = make_inputs(case, dtype=torch.float16, device=DEVICE)

    def run(inputs, name):
        return swaa_attention(*inputs, selection=selection, backend=name, **case.arguments(DEVICE))

    oracle = run([x.double() for x in inputs], "reference")
    eager = run(inputs, "reference")
    actual = run(inputs, backend)
    assert_close_to_oracle(actual.output, oracle.output, eager.output)
    if actual.lse is not None:
        assert torch.equal(actual.lse.isinf(), oracle.lse.isinf())
        lses = (torch.where(x.isinf(), 0.0, x) for x in (actual.lse, oracle.lse, eager.lse))
        assert_close_to_oracle(*lses, name="lse")


CHOICES = (
    Case(queries=400, window=64, sink_tokens=9, heads=4, kv_heads=2),
    Case(queries=390, window=100, sink_tokens=64, full_from=371, kv_heads=1),
    Case(queries=360, window=64, sink_tokens=5, starts=(0, 70), kv_heads=1),
    Case(queries=150, keys=450, window=70, head_dim=80),
)


def assert_chosen_alike(actual, wanted, shares):
    """Equal lists, but for blocks whose shares lie within rounding of the last one chosen."""
    assert torch.equal(actual.counts, wanted.counts)
    for place in wanted.counts.nonzero().tolist():
        count = int(wanted.counts[tuple(place)])
        share = shares[tuple(place)]
        ours, theirs = (set(x.blocks[tuple(place)][:count].tolist()) for x in (actual, wanted))
        least = share[list(theirs)].min()
        for block in ours ^ theirs:
            assert abs(share[block] - least) <= 1e-3 * least, (place, block)


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: case.id)
def test_the_kernel_chooses_what_the_definition_does(case):
    scoring = pytest.importorskip("swaa.attention.triton.scoring")
    inputs = make_inputs(case, dtype=torch.float16, device=DEVICE)
    call = make_call(*inputs, selected_keys=128, **case.arguments(DEVICE))
    everything = make_call(*inputs, selected_keys=64 * 64, **case.arguments(DEVICE))
    wanted = select(call)
    assert int(wanted.counts.max()) == 2
    assert_chosen_alike(scoring.select(call), wanted, shares_of(everything))
    assert torch.equal(scoring.select(everything).counts, select(everything).counts)


def shares_of(call):
    """Every share of a call, with ``best_blocks`` put aside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swaa.attention.selection.best_blocks", lambda call, shares: shares)
        return select(call)


def test_a_row_block_chooses_among_complete_blocks_that_some_row_lacks():
    case = Case(queries=512, window=128, sink_tokens=64, heads=2, kv_heads=1)
    call = call_of(case, selected_keys=64 * 64)
    chosen = select(call)
    lists = [sorted(chosen.blocks[0, 0, r, : chosen.counts[0, 0, r]].tolist()) for r in range(4)]
    assert lists == [[], [1], [1, 2, 3], [1, 2, 3, 4, 5]]


def test_the_block_that_holds_the_key_a_row_looks_for_is_chosen():
    case = Case(queries=640, window=64, sink_tokens=1, heads=2, kv_heads=1)
    q, k, v = make_inputs(case, dtype=torch.float32)
    k[0, 201] = 3 * q[0, 600, 1]
    call = make_call(q, k, v, selected_keys=64, **case.arguments())
    assert select(call).blocks[0, 0, 600 // 128].tolist() == [201 // 64]


@pytest.mark.parametrize("backend", FAST)
def test_a_budget_of_all_keys_is_full_attention(backend):
    case = Case(queries=330, window=65, sink_tokens=5, starts=(0, 40), heads=2, kv_heads=1)
    # The rows of a block see what is complete before it: all but what lies in their own block.
    case = Case(**{**vars(case), "window": 65 + 128})
    inputs = make_inputs(case, dtype=torch.float32, device=DEVICE)
    arguments = case.arguments(DEVICE)
    selected = swaa_attention(*inputs, selected_keys=64 * 64, backend=backend, **arguments)
    arguments["window"] = None
    full = swaa_attention(*inputs, backend="reference", **arguments)
    assert (selected.output - full.output).abs().max() < 1e-5


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("cut", [256, 330], ids=["aligned", "unaligned"])
def test_a_prompt_cut_at_row_blocks_chooses_as_a_whole_one(backend, cut):
    case = Case(queries=390, window=64, sink_tokens=5, heads=2, kv_heads=1)
    q, k, v = make_inputs(case, dtype=torch.float32, device=DEVICE, seed=2)
    options = {"window": 64, "sink_tokens": 5, "selected_keys": 64, "backend": backend}
    whole = swaa_attention(q, k, v, **options).output
    first = swaa_attention(q[:, :cut], k[:, :cut], v[:, :cut], **options).output
    rest = swaa_attention(q[:, cut:], k, v, **options).output
    parts = torch.cat([first, rest], dim=1)
    same = bool(((parts - whole).abs().amax((2, 3)) < 1e-5).all())
    assert same == (cut % 128 == 0)


@pytest.mark.parametrize("backend", FAST)
def test_packed_sequences_choose_for_themselves(backend):
    offsets = torch.tensor([0, 200, 200, 470], dtype=torch.int32, device=DEVICE)
    case = Case(queries=480, heads=2, kv_heads=1)
    q, k, v = make_inputs(case, dtype=torch.float32, device=DEVICE)
    options = {"window": 64, "sink_tokens": 5, "selected_keys": 64, "backend": backend}
    packed = swaa_attention(q, k, v, cu_seqlens_q=offsets, cu_seqlens_k=offsets, **options).output
    for first, end in ((0, 200), (200, 470)):
        alone = swaa_attention(*(x[:, first:end] for x in (q, k, v)), **options).output
        assert (packed[:, first:end] - alone).abs().max() < 1e-5
    assert not packed[:, 470:].any()


@pytest.mark.parametrize("backend", FAST)
def test_pages_choose_as_keys_side_by_side(backend):
    case = Case(queries=260, keys=330, window=64, sink_tokens=5, heads=2, kv_heads=1)
    q, k, v = make_inputs(case, dtype=torch.float32, device=DEVICE)
    (pages, table), (values, _) = paged(k, 16), paged(v, 16)
    options = {"window": 64, "sink_tokens": 5, "selected_keys": 64, "backend": backend}
    found = swaa_attention(
        q,
        *(pages, values),
        kv_lens=torch.tensor([330], dtype=torch.int32, device=DEVICE),
        cu_seqlens_q=torch.tensor([0, 260], dtype=torch.int32, device=DEVICE),
        block_table=table,
        **options,
    ).output
    assert (found - swaa_attention(q, k, v, **options).output).abs().max() < 1e-5


GRADIENTS = (
    Case(queries=300, window=64, sink_tokens=5, heads=2, kv_heads=1),
    Case(queries=270, window=40, sink_tokens=70, heads=4, kv_heads=2, full_from=250),
    Case(queries=200, window=20, heads=2, kv_heads=1, full_from=130, full_until=140),
    Case(queries=150, window=65, sink_tokens=5, starts=(0, 70), heads=2, kv_heads=1),
    Case(queries=70, keys=261, window=65, sink_tokens=5, heads=2, kv_heads=2, head_dim=80),
    Case(queries=100, window=300, sink_tokens=4, heads=2, kv_heads=1),  # nothing to choose
)


def test_gradients_of_sdpa_go_through_the_chosen_keys():
    case = GRADIENTS[0]
    inputs = make_inputs(case, dtype=torch.float32, device=DEVICE)
    arguments = case.arguments(DEVICE) | {"selection": random_lists(case), "with_lse": False}
    assert_gradients_like_the_reference(inputs, "sdpa", **arguments)


@pytest.mark.parametrize("case", GRADIENTS, ids=lambda case: case.id)
def test_gradients_of_the_kernels_go_through_the_chosen_keys(case):
    pytest.importorskip("triton")
    inputs = make_inputs(case, dtype=torch.float16, device=DEVICE)
    selection = random_lists(case, seed=6)
    chosen = (expected(case, selection) != case.expected()[:, None]).any(-1).any(-1).any(0)
    assert (chosen == (case.window < case.queries)).all()  # by every head, or by none
    arguments = case.arguments(DEVICE) | {"selection": selection}
    assert_gradients_like_the_reference(inputs, "triton", **arguments)


def test_gradients_of_packed_sequences_with_answers_that_choose_more_than_there_is():
    pytest.importorskip("triton")
    ends = [0, 20, 20, 220, 350, 360]  # short, empty, long, long; the last is padding
    offsets = torch.tensor(ends[:-1], dtype=torch.int32, device=DEVICE)
    left = torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(ends)]) - 39
    for first, end in ((90, 95), (205, 220), (340, 350)):  # answers and what precedes them
        left[first:end] = 0
    inputs = make_inputs(Case(queries=360, heads=2, kv_heads=1), dtype=torch.float16, device=DEVICE)
    assert_gradients_like_the_reference(
        inputs,
        "triton",
        cu_seqlens_q=offsets,
        cu_seqlens_k=offsets,
        left=left[None].int().to(DEVICE),
        window=40,
        sink_tokens=3,
        selected_keys=64 * 64,
    )


def test_gradients_where_slots_behind_the_length_hold_anything():
    pytest.importorskip("triton")
    case = Case(queries=40, keys=220, starts=(0, 0), heads=2, kv_heads=1)
    q, k, v = make_inputs(case, dtype=torch.float16, device=DEVICE)
    k[1, 150:] = v[1, 150:] = float("nan")
    blocks = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32, device=DEVICE)
    selection = Selection(
        blocks.expand(2, 1, 2, 2), torch.full((2, 1, 2), 2, dtype=torch.int32, device=DEVICE)
    )
    lengths = torch.tensor([220, 150], dtype=torch.int32, device=DEVICE)
    arguments = {"window": 30, "sink_tokens": 5, "kv_lens": lengths, "selection": selection}
    assert_gradients_like_the_reference((q, k, v), "triton", **arguments)


def test_a_checkpointed_pass_chooses_again_and_gives_the_same_bits():
    pytest.importorskip("triton")
    case = Case(queries=200, window=20, heads=2, kv_heads=1)
    inputs = make_inputs(case, dtype=torch.float16, device=DEVICE)

    def run(through):
        leaves = [x.clone().requires_grad_() for x in inputs]
        through(
            lambda *qkv: (
                swaa_attention(
                    *qkv, selected_keys=64, backend="triton", **case.arguments(DEVICE)
                ).output
            ),
            *leaves,
        ).sum().backward()
        return [x.grad for x in leaves]

    plain = run(lambda attend, *leaves: attend(*leaves))
    again = run(functools.partial(checkpoint, use_reentrant=False))
    assert all(map(torch.equal, plain, again))


def test_each_block_of_keys_lists_the_blocks_of_rows_that_chose_it():
    pytest.importorskip("triton")
    from swaa.attention.triton.selected_backward import choosers

    case = Case(queries=500, starts=(0, 30), heads=2, kv_heads=2, window=64)
    selection = random_lists(case)
    batch, kv_heads, row_blocks = selection.counts.shape
    rows, ends = choosers(selection, 8)
    wanted = [[] for _ in range(batch * kv_heads * 8)]
    for b, h, r in itertools.product(*map(range, (batch, kv_heads, row_blocks))):
        for block in selection.blocks[b, h, r, : selection.counts[b, h, r]].tolist():
            wanted[(b * kv_heads + h) * 8 + block].append(r)
    found = [rows[first:end].tolist() for first, end in itertools.pairwise(ends.tolist())]
    assert found == wanted
    assert sum(map(len, found)) > 8


def test_mistakes_are_named():
    case = Case(queries=300, window=64)
    with pytest.raises(ValueError, match=r"selected_keys is 100; keys are chosen in blocks of 64"):
        call_of(case, selected_keys=100)
    with pytest.raises(ValueError, match="selected_keys is -64; it must be at least 0"):
        call_of(case, selected_keys=-64)
    lists = random_lists(case)
    short = Selection(lists.blocks[:, :, 1:], lists.counts[:, :, 1:])
    with pytest.raises(ValueError, match=r"selection has blocks of shape \(1, 2, 2, 4\)"):
        call_of(case, selection=short)
    offsets = torch.tensor([0, 300], dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="pass sequences apart"):
        call_of(case, selection=random_lists(case), cu_seqlens_q=offsets, cu_seqlens_k=offsets)
