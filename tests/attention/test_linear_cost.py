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

    # Two doublings: what caches and other work add to either time then counts half per doubling.
    # Quadratic work would grow by 4 in each.
    sizes = (8_192, 32_768)
    inputs = {n: [torch.randn(1, n, heads, 64) for heads in (9, 3, 3)] for n in sizes}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # In turns: the more of them, the nearer do the shortest times come to an idle machine's.
        turns = []
        for _ in range(6):
            turns += [[seconds(n) for n in sizes] for _ in range(3)]
            short, long = (min(times) for times in zip(*turns, strict=True))
            if (growth := (long / short) ** 0.5) <= 2.3:
                break
    finally:
        torch.set_num_threads(threads)
    with capsys.disabled():
        print(f"\nattention time, 8,192 to 32,768 tokens: {growth:.2f} times per doubling")
    assert growth <= 2.3
