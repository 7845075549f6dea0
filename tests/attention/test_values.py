import pytest
import torch

from swaa.attention import swaa_attention
from swaa.testing import SHAPES, assert_close_to_oracle, make_inputs
from tests.attention.judge import (
    DEVICE,
    HALF_DTYPES,
    assert_gradients_like_the_reference,
    few_programs,
)


def assert_as_exact_as_eager(case, backend, dtype, device):
    inputs = make_inputs(case, dtype=dtype, device=device)
    # Under a window of 1 gradients cancel to zero; what cancels is one more head_dim sum.
    factor = 2 if case.window == 1 else 1
    arguments = {**case.arguments(device), "with_lse": False, "factor": factor}
    assert_gradients_like_the_reference(inputs, backend, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_sdpa_output_and_gradients_are_as_exact_as_eager(case, dtype):
    assert_as_exact_as_eager(case, "sdpa", dtype, "cpu")


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_triton_output_and_gradients_are_as_exact_as_eager(case, dtype):
    pytest.importorskip("triton")
    assert_as_exact_as_eager(few_programs(case), "triton", dtype, DEVICE)


@pytest.mark.parametrize("case", [SHAPES[5], SHAPES[11]], ids=lambda case: case.id)
def test_triton_output_in_fp32_is_as_exact_as_eager(case):
    pytest.importorskip("triton")
    inputs = make_inputs(case, dtype=torch.float32, device=DEVICE)
    oracle, eager, actual = (
        swaa_attention(
            *(x.to(dtype) for x in inputs), backend=backend, **case.arguments(DEVICE)
        ).output
        for backend, dtype in (
            ("reference", torch.float64),
            ("reference", torch.float32),
            ("triton", torch.float32),
        )
    )
    assert_close_to_oracle(actual, oracle, eager)
