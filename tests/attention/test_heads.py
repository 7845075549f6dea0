"""KV heads of one layer that see different keys: exact per head, in every phase and layout."""

import pytest
import torch

from swaa.attention import swaa_attention
from swaa.attention.heads import join_heads, take_heads
from swaa.testing import keys_seen_by_head
from tests.attention.judge import BACKENDS, DEVICE, paged

WINDOW, SINKS, TAIL, KEYS, PAGE = 20, 3, 2, 90, 16
GROUP, KV_HEADS = 2, 4
KEPT = [(0,), (1, 3), (0, 1, 2), (2, 3)]
ROWS = {"decoding": (1, 60), "verification": (5, 60), "across the prompt's end": (20, 80)}


def by_heads(backend, kept, prompt, q, k, v, **layout):
    """One layer: generated rows of some KV heads are full, those of the others slide."""
    heads = [kept, tuple(h for h in range(KV_HEADS) if h not in kept)]
    outputs = [
        swaa_attention(
            take_heads(q, own, dim=2, group=GROUP),
            take_heads(k, own, dim=2),
            take_heads(v, own, dim=2),
            window=WINDOW,
            sink_tokens=SINKS,
            full_from=prompt - TAIL,
            full_until=None if own is kept else prompt,
            backend=backend,
            **layout,
        ).output
        for own in heads
    ]
    return join_heads(outputs, heads, dim=2, group=GROUP)


def expected(kept, prompt, queries):
    seen = torch.zeros(1, GROUP * KV_HEADS, queries, KEYS, dtype=torch.bool)
    for head in range(GROUP * KV_HEADS):
        for row in range(queries):
            i = KEYS - queries + row
            full = prompt - TAIL <= i < prompt or (i >= prompt and head // GROUP in kept)
            for j in range(i + 1):
                seen[0, head, row, j] = full or i - j < WINDOW or j < SINKS
    return seen


@pytest.mark.parametrize(
    ("kept", "layout"),
    # Of a cache's pages: heads that are copied, and heads that lie in one run.
    [*((kept, "dense") for kept in KEPT), ((1, 3), "paged"), ((2, 3), "paged")],
    ids=str,
)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_head_sees_its_keys(backend, kept, rows, layout):
    queries, prompt = ROWS[rows]

    def attend(q, k, v):
        more = {}
        if layout == "paged":
            (k, table), (v, _) = paged(k, PAGE), paged(v, PAGE)
            lens = torch.tensor([KEYS], dtype=torch.int32, device=DEVICE)
            more = {"block_table": table, "kv_lens": lens}
        return by_heads(backend, kept, prompt, q, k, v, **more)

    seen = keys_seen_by_head(
        attend,
        batch=1,
        queries=queries,
        keys=KEYS,
        heads=GROUP * KV_HEADS,
        kv_heads=KV_HEADS,
        head_dim=64,
        device=DEVICE,
    )
    assert torch.equal(seen, expected(kept, prompt, queries))


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_heads_come_back_to_their_places(kept):
    x = torch.randn(2, 3, GROUP * KV_HEADS, 5, requires_grad=True)
    heads = [kept, tuple(h for h in range(KV_HEADS) if h not in kept)]
    parts = [take_heads(x, own, dim=2, group=GROUP) for own in heads]
    assert [part.shape[2] for part in parts] == [GROUP * len(own) for own in heads]
    joined = join_heads(parts, heads, dim=2, group=GROUP)
    assert torch.equal(joined, x)
    joined.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert take_heads(x, (1, 2), dim=2).data_ptr() == x[:, :, 1:].data_ptr()  # one run: no copy
