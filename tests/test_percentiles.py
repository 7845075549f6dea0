"""One definition of percentiles for all results: torch's, which wrote those that are published."""

import pytest
import torch

from swaa.statistics import percentiles


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 40])
def test_percentiles_are_those_of_torch(count):
    values = torch.rand(count, dtype=torch.float64)
    expected = values.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    assert percentiles(values.tolist()) == pytest.approx(expected.tolist(), rel=1e-14)
