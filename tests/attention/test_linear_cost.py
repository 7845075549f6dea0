"""The sdpa backend does linear work: counted exactly, and timed as a ratio."""

import time

import pytest
import torch

from swaa.attention import swaa_attention
from swaa.attention.api import make_call
from swaa.attention.sdpa import plan_chunks


def entries(tokens, **numbers):
    """Score entries that a prompt's chunks compute, sinks apart."""
    q = torch.empty(1, tokens, 1, 1)
    call = make_call(q, q, q, window=512, sink_tokens=128, **numbers)
    chunks = plan_chunks(call, call.left_rows(call.positions()))
    rows = [chunk.end - chunk.first for chunk in chunks]
    assert sum(rows) == tokens
    return sum(n * (c.right - c.left) for n, c in zip(rows, chunks, strict=True))


def test_twice_the_tokens_are_twice_the_work():
    assert entries(16_384) <= 2.05 * entries(8_192)


def test_a_dense_tail_adds_its_own_rows_only():
    tail = {"full_from": 16_384 - 128, "full_until": 16_384}
    assert entries(16_384, **tail) <= entries(16_384) + 128 * 16_384


def test_numbers_in_tensors_cost_no_more():
    numbers = {"full_from": 8_000, "full_until": 8_192}
    tensors = {name: torch.tensor([value]) for name, value in numbers.items()}
    assert entries(8_192, **tensors) == entries(8_192, **numbers)


@pytest.mark.slow
def test_time_grows_linearly(capsys):
    def seconds(tokens):
        q, k, v = inputs[tokens]
        start = time.process_time()  # other work on the machine does not count
        swaa_attention(q, k, v, window=512, sink_tokens=128, backend="sdpa")
        return time.process_time() - start

    inputs = {
        tokens: [torch.randn(1, tokens, heads, 64) for heads in (9, 3, 3)]
        for tokens in (8_192, 16_384)
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # In turns, since other work does take caches and memory from both; the more of them, the
        # nearer do the shortest times come to those of an idle machine.
        turns = []
        for _ in range(6):
            turns += [(seconds(8_192), seconds(16_384)) for _ in range(5)]
            short, long = (min(times) for times in zip(*turns, strict=True))
            if (ratio := long / short) <= 2.3:
                break
    finally:
        torch.set_num_threads(threads)
    with capsys.disabled():
        print(f"\nattention time, 16,384 over 8,192 tokens: {ratio:.2f}")
    assert ratio <= 2.3
