"""Which keys of a chunk are gathered, and that the rule of the mask holds among them."""

import itertools

import pytest
import torch

from swaa.attention import swaa_attention
from swaa.config import LayerPlan
from swaa.integrations.chunks import NEVER, lay_out, place

PLANS = {
    "sliding": LayerPlan(window=24, sink_tokens=4),
    "no_sinks": LayerPlan(window=10),
    "full_decode": LayerPlan(window=24, sink_tokens=4, full_decode=True),
    "tail": LayerPlan(window=24, sink_tokens=40, dense_tail=8),
    "both": LayerPlan(window=16, sink_tokens=3, full_decode=True, dense_tail=8),
    "full": LayerPlan(window=None),
}


def offsets_of(rows):
    return [0, *itertools.accumulate(rows)]


def visible(plan, i, j, prompt):
    """The rule, as design.md has it."""
    first, end = plan.full_rows(prompt)
    full = first is not None and first <= i < (end or NEVER)
    return j <= i and (full or j > i - (plan.window or NEVER) or j < plan.sink_tokens)


def seen_by(layout, plan, request, row):
    """Positions that a row of a gathered request sees, by the rule among the gathered keys."""
    gap = layout.gaps[request]
    kept = layout.kept[request]
    sinks = plan.sink_tokens
    key = [j if j < sinks or not gap else j + gap for j in range(kept)]
    i = kept - layout.rows[request] + row
    begin, end = layout.full[request]
    full = begin <= i < end
    left = i - (plan.window or NEVER)
    return {key[j] for j in range(kept) if j <= i and (full or j > left or j < sinks)}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("start", [0, 5, 27, 28, 29, 100, 300])
@pytest.mark.parametrize("behind", [-20, 0, 3, 40, 500], ids=lambda n: f"prompt{n:+}")
def test_gathered_rows_see_what_the_rule_says(name, start, behind):
    plan = PLANS[name]
    rows = 64
    length = start + rows
    prompt = length + behind
    layout = lay_out(plan, [0, rows], [length], [prompt], min_rows=32, max_keys=10_000)
    assert layout is not None
    apart = {
        row
        for found in layout.apart
        for row in range(found.first, found.end)
        if found.position == start + found.first
    }
    for row in range(rows):
        i = start + row
        if row in apart:
            assert all(visible(plan, i, j, prompt) for j in range(i + 1))
            continue
        expected = {j for j in range(length) if visible(plan, i, j, prompt)}
        assert seen_by(layout, plan, 0, row) == expected, f"row at {i}"


def test_only_the_last_long_requests_are_gathered():
    plan = PLANS["sliding"]
    rows = [1, 40, 3, 32, 50]
    lengths = [900, 40, 3, 500, 50]
    layout = lay_out(plan, offsets_of(rows), lengths, None, min_rows=32, max_keys=10_000)
    assert layout is not None
    assert (layout.first, layout.row, layout.rows) == (3, 44, (32, 50))
    assert layout.kept == (4 + 23 + 32, 50)
    assert layout.gaps == (500 - 59, 0)
    short = lay_out(plan, offsets_of([40, 1]), [40, 9], None, min_rows=32, max_keys=10_000)
    assert short is None


def test_no_more_keys_than_allowed():
    rows = [32, 32, 32]
    layout = lay_out(
        PLANS["sliding"], offsets_of(rows), [900, 900, 900], None, min_rows=32, max_keys=130
    )
    assert layout is not None
    assert layout.first == 1
    assert sum(layout.kept) <= 130


def test_full_rows_of_a_long_prompt_are_kept_apart_and_of_a_short_one_are_not():
    plan = PLANS["both"]
    far = lay_out(plan, [0, 64], [400], [400], min_rows=32, max_keys=10_000)
    assert far is not None
    assert far.gaps[0] > 0
    assert [(rows.first, rows.end, rows.position) for rows in far.apart] == [(56, 64, 392)]
    near = lay_out(plan, [0, 64], [120], [120], min_rows=32, max_keys=10_000)
    assert near is not None
    assert near.apart == ()
    assert (near.gaps, near.full) == ((0,), ((112, NEVER),))


def test_slots_follow_the_block_table():
    plan = PLANS["sliding"]
    lengths, rows, page = [70, 300, 64], [1, 64, 64], 16
    layout = lay_out(plan, offsets_of(rows), lengths, None, min_rows=32, max_keys=10_000)
    assert layout is not None
    table = torch.randperm(3 * 20).reshape(3, 20).int()
    chunks = place(layout, table, plan.sink_tokens, page)
    expected = []
    for request, gap, kept in zip((1, 2), layout.gaps, layout.kept, strict=True):
        for j in range(kept):
            position = j if j < plan.sink_tokens else j + gap
            expected.append(int(table[request, position // page]) * page + position % page)
    assert chunks.slots.tolist() == expected
    assert chunks.cu_rows.tolist() == [0, 64, 128]
    assert chunks.cu_keys.tolist() == [0, layout.kept[0], sum(layout.kept)]
    assert chunks.full_from is None


def test_attention_over_gathered_keys_is_that_over_all_keys():
    plan = PLANS["sliding"]
    length, rows = 300, 64
    layout = lay_out(plan, [0, rows], [length], None, min_rows=32, max_keys=10_000)
    assert layout is not None
    chunks = place(layout, torch.arange(length).int()[None], plan.sink_tokens, 1)
    q = torch.randn(1, rows, 2, 16)
    k, v = torch.randn(2, 1, length, 2, 16)
    options = {"window": plan.window, "sink_tokens": plan.sink_tokens, "backend": "reference"}
    whole = swaa_attention(q, k, v, **options).output
    part = swaa_attention(
        *(q, k[:, chunks.slots], v[:, chunks.slots]),
        cu_seqlens_q=chunks.cu_rows,
        cu_seqlens_k=chunks.cu_keys,
        **options,
    ).output
    torch.testing.assert_close(part, whole)
