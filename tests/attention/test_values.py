import pytest
import torch

from swaa.attention import swaa_attention
from swaa.testing import SHAPES, assert_close_to_oracle, make_inputs

GPU = torch.cuda.is_available()
# tl.dot on bf16 returns garbage in the interpreter.
TRITON_DTYPES = [torch.float16, torch.bfloat16] if GPU else [torch.float16]


def attend(case, inputs, backend):
    leaves = [x.clone().requires_grad_() for x in inputs]
    arguments = case.arguments(inputs[0].device)
    output = swaa_attention(*leaves, backend=backend, **arguments).output
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64, device=output.device)
    (output.double() * weight.reshape(output.shape)).sum().backward()
    return {"output": output.detach(), **dict(zip("qkv", (x.grad for x in leaves), strict=True))}


def assert_as_exact_as_eager(case, backend, dtype, device):
    inputs = make_inputs(case, dtype=dtype, device=device)
    oracle = attend(case, [x.double() for x in inputs], "reference")
    eager = attend(case, inputs, "reference")
    actual = attend(case, inputs, backend)
    magnitude = max(value.abs().max().item() for value in oracle.values())
    if case.window == 1:  # gradients cancel to zero; what cancels is one more head_dim sum
        magnitude *= 2
    for name, value in actual.items():
        assert_close_to_oracle(value, oracle[name], eager[name], magnitude=magnitude, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_sdpa_output_and_gradients_are_as_exact_as_eager(case, dtype):
    assert_as_exact_as_eager(case, "sdpa", dtype, "cpu")


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_triton_output_and_gradients_are_as_exact_as_eager(case, dtype):
    pytest.importorskip("triton")
    assert_as_exact_as_eager(case, "triton", dtype, "cuda" if GPU else "cpu")


@pytest.mark.parametrize("case", [SHAPES[5], SHAPES[11]], ids=lambda case: case.id)
def test_triton_output_in_fp32_is_as_exact_as_eager(case):
    pytest.importorskip("triton")
    inputs = make_inputs(case, dtype=torch.float32, device="cuda" if GPU else "cpu")
    arguments = case.arguments(inputs[0].device)
    oracle, eager, actual = (
        swaa_attention(*(x.to(dtype) for x in inputs), backend=backend, **arguments).output
        for backend, dtype in (
            ("reference", torch.float64),
            ("reference", torch.float32),
            ("triton", torch.float32),
        )
    )
    assert_close_to_oracle(actual, oracle, eager)
