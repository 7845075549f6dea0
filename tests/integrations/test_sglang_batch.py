"""The numbers of a decode batch, copied where an SGLang graph reads them."""

import torch

from swaa.integrations.sglang.metadata import Batch, Pages, Whole, stage


def numbers(requests, width, *, written=None):
    """A batch of so many requests; the rows written may be fewer."""
    table = torch.arange(requests * width, dtype=torch.int32).view(requests, width)
    rows = requests if written is None else written
    return Batch(
        full=Pages(table=table),
        sliding=Pages(table=table + 100, written=torch.arange(1, rows + 1)),
        lengths=torch.arange(requests, dtype=torch.int32) + 3,
        whole=Whole(table=table + 200, lengths=torch.arange(requests, dtype=torch.int32) + 9),
    )


def test_what_a_graph_reads_is_the_batch():
    buffers = numbers(8, 4)
    batch = numbers(5, 4)
    staged = stage(buffers, batch)
    assert torch.equal(staged.full.table, batch.full.table)
    assert torch.equal(staged.sliding.table, batch.sliding.table)
    assert torch.equal(staged.sliding.written, batch.sliding.written)
    assert torch.equal(staged.lengths, batch.lengths)
    assert torch.equal(staged.whole.table, batch.whole.table)
    assert torch.equal(staged.whole.lengths, batch.whole.lengths)
    assert staged.full.table.data_ptr() == buffers.full.table.data_ptr()
    assert staged.whole.table.data_ptr() == buffers.whole.table.data_ptr()


def test_a_batch_padded_to_a_graphs_size_writes_its_rest_into_slot_zero():
    buffers = numbers(8, 4)
    staged = stage(buffers, numbers(8, 4, written=5))
    assert staged.sliding.written.tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert buffers.sliding.written.tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
