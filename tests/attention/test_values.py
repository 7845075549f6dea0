import pytest
import torch

from swaa.attention import swaa_attention
from swaa.testing import SHAPES, assert_close_to_oracle, make_inputs


def attend(case, inputs, backend):
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = swaa_attention(*leaves, backend=backend, **case.arguments()).output
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape)
    (output.double() * weight).sum().backward()
    return {"output": output.detach(), **dict(zip("qkv", (x.grad for x in leaves), strict=True))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_sdpa_output_and_gradients_are_as_exact_as_eager(case, dtype):
    inputs = make_inputs(case, dtype=dtype)
    oracle = attend(case, [x.double() for x in inputs], "reference")
    eager = attend(case, inputs, "reference")
    actual = attend(case, inputs, "sdpa")
    magnitude = max(value.abs().max().item() for value in oracle.values())
    if case.window == 1:  # gradients cancel to zero; what cancels is one more head_dim sum
        magnitude *= 2
    for name, value in actual.items():
        assert_close_to_oracle(value, oracle[name], eager[name], magnitude=magnitude, name=name)
