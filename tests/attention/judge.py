"""How backends are judged here: gradients against the reference, keys in pages, what there is."""

import importlib.util
from dataclasses import replace

import torch

from swaa.attention import swaa_attention
from swaa.testing import assert_close_to_oracle

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BACKENDS = ["reference", "sdpa"]
if importlib.util.find_spec("triton"):
    BACKENDS.append("triton")
# tl.dot on bf16 returns garbage in the interpreter.
HALF_DTYPES = [torch.float16, torch.bfloat16] if GPU else [torch.float16]


def few_programs(case):
    """The same mask with one head in the place of two, where the interpreter is slow."""
    if GPU or case.queries < 200 or case.heads != case.kv_heads:
        return case
    return replace(case, heads=1, kv_heads=1)


def gradients(inputs, backend, *, with_lse=True, **arguments):
    """Output, lse and gradients of a loss over the output and, where wanted, the lse."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    output, lse = swaa_attention(*leaves, backend=backend, **arguments)
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64, device=output.device)
    loss = (output.double() * weight.view_as(output)).sum()
    if with_lse:
        loss = loss + torch.where(lse.isfinite(), lse, 0.0).double().sum() / 8
    loss.backward()
    found = {"output": output.detach(), **dict(zip("qkv", (x.grad for x in leaves), strict=True))}
    assert all(x.dtype == inputs[0].dtype for x in found.values())
    return found, lse


def assert_gradients_like_the_reference(inputs, backend, *, factor=1, **arguments):
    """Output and gradients are as exact as eager ones; ``factor``: of the size whose ulp counts."""
    oracle, lse = gradients([x.double() for x in inputs], "reference", **arguments)
    eager, _ = gradients(inputs, "reference", **arguments)
    actual, actual_lse = gradients(inputs, backend, **arguments)
    if arguments.get("with_lse", True):
        assert torch.equal(actual_lse.isinf(), lse.isinf())
    magnitude = factor * max(x.abs().max().item() for x in oracle.values())
    for name, x in actual.items():
        assert_close_to_oracle(x, oracle[name], eager[name], magnitude=magnitude, name=name)


def paged(x, page):
    """Keys ``[1, tokens, heads, head_dim]`` in pages, in another order, between pages of NaN.

    Returns the pages, and the table ``[1, pages]`` that names them; the order is always the same.
    """
    count = -(-x.shape[1] // page)
    order = torch.randperm(count + 2, generator=torch.Generator().manual_seed(0))[:count]
    order = order.to(x.device)
    pages = x.new_full((count + 2, page, *x.shape[2:]), float("nan"))
    behind = (0, 0, 0, 0, 0, count * page - x.shape[1])
    filled = torch.nn.functional.pad(x[0], behind, value=float("nan"))
    pages[order] = filled.unflatten(0, (count, page))
    return pages, order.int()[None]
