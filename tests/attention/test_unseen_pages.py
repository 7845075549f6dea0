"""The sdpa backend copies no page that no row of a sequence sees, and every row sees the same."""

import pytest
import torch

from swaa.attention import swaa_attention
from swaa.attention.api import make_call
from swaa.testing import Case, keys_seen
from tests.attention.judge import paged

PAGE = 8
# Sinks and windows that end within a page, at its end, and one key behind it.
CASES = (
    Case(queries=1, keys=100, window=9, sink_tokens=3),
    Case(queries=1, keys=97, window=8, sink_tokens=8),
    Case(queries=1, keys=96, window=16, sink_tokens=9),
    Case(queries=5, keys=101, window=17, sink_tokens=0),
    Case(queries=33, keys=121, window=1, sink_tokens=1),
    Case(queries=4, keys=90, window=7, sink_tokens=4, full_from=89),
    Case(queries=4, keys=90, window=7, sink_tokens=4, full_from=90),
    Case(queries=4, keys=90, window=7, sink_tokens=4, full_from=60, full_until=86),
    Case(queries=4, keys=90, window=7, sink_tokens=4, full_from=60, full_until=87),
    Case(queries=4, keys=20, window=12, sink_tokens=9),
    Case(queries=3, keys=60, window=None),
)


def arguments_of(case, table, **more):
    numbers = {"window": case.window, "sink_tokens": case.sink_tokens}
    for name in ("full_from", "full_until"):
        value = getattr(case, name)
        numbers[name] = None if value is None else torch.tensor([value], dtype=torch.int32)
    return numbers | {
        "kv_lens": torch.tensor([case.key_count], dtype=torch.int32),
        "cu_seqlens_q": torch.tensor([0, case.queries], dtype=torch.int32),
        "block_table": table,
        **more,
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_rows_see_exactly_the_keys_of_the_rule(case):
    def attend(q, k, v):
        (k, table), (v, _) = paged(k, PAGE), paged(v, PAGE)
        return swaa_attention(q, k, v, backend="sdpa", **arguments_of(case, table))

    seen = keys_seen(attend, batch=1, queries=case.queries, keys=case.key_count, head_dim=128)
    assert torch.equal(seen, case.expected())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_no_row_sees_is_left_where_it_is(case):
    q, k = torch.zeros(1, case.queries, 1, 64), torch.zeros(1, case.key_count, 1, 64)
    pages, table = paged(k, PAGE)
    call = make_call(q, pages, pages, **arguments_of(case, table))
    (one,) = call.sequences(unseen=False)
    seen = case.expected()[0].any(0)
    kept = [page for page in seen.split(PAGE) if page.any()]
    assert one.k.shape[1] == sum(map(len, kept))
    (whole,) = call.sequences()
    assert whole.k.shape[1] == case.key_count


def test_sequences_of_a_batch_leave_out_their_own():
    cases = CASES[:9]
    calls, pools, tables, width = [], [], [], 16
    for case in cases:
        q = torch.randn(1, case.queries, 2, 64)
        k, v = torch.randn(2, 1, case.key_count, 1, 64)
        (k, table), (v, _) = paged(k, PAGE), paged(v, PAGE)
        tables.append(torch.nn.functional.pad(table + sum(map(len, pools)), (0, width)))
        pools.append(torch.stack([k, v], 1))
        calls.append(q)
    k, v = torch.cat(pools).unbind(1)
    ends = torch.tensor([0, *(case.queries for case in cases)]).cumsum(0)
    numbers = {
        "window": 9,
        "sink_tokens": 3,
        "full_from": torch.tensor([200, 90, 95, 99, 200, 89, 90, 88, 200], dtype=torch.int32),
        "kv_lens": torch.tensor([case.key_count for case in cases], dtype=torch.int32),
        "cu_seqlens_q": ends.int(),
        "block_table": torch.cat([table[:, :width] for table in tables]),
    }
    found, wanted = (
        swaa_attention(torch.cat(calls, 1), k, v, backend=name, **numbers).output
        for name in ("sdpa", "reference")
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
