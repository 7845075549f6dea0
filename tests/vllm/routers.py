"""Rows that a router sends to one of two experts which it finds as good, up to rounding."""

import contextlib

NEAR = 0.02
"""Of two experts' logits; kernels round float32 to TF32, and errors grow from layer to layer."""


def routers_of(model):
    """The routers of a mixture of experts; what they return: logits, scores, experts."""
    return [module for name, module in model.named_modules() if name.endswith("mlp.gate")]


def near_ties(model, run):
    """``(router, row)`` wherever the last expert chosen and the first left out are about equal."""
    found = []

    def look(router, _, output):
        best = output[0].topk(router.top_k + 1, dim=-1).values
        rows = (best[:, -2] - best[:, -1] < NEAR).nonzero().flatten()
        found.extend((router, int(row)) for row in rows)

    with contextlib.ExitStack() as hooks:
        for router in routers_of(model):
            hooks.enter_context(_hook(router, look))
        run()
    return found


def other_choice(router, row):
    """While the block runs, one row goes to the expert that was only just left out."""

    def swap(router, _, output):
        logits, scores, experts = (x.clone() for x in output)
        order = logits[row].topk(router.top_k + 1).indices
        logits[row, order[-2:]] = logits[row, order[-2:].flip(0)]
        chosen = logits[row].softmax(-1).topk(router.top_k)
        whole = scores[row].sum() > 1 - 1e-5  # Mixtral, and Qwen3-MoE where it says so
        scores[row] = chosen.values / (chosen.values.sum() if whole else 1)
        experts[row] = chosen.indices
        return logits, scores, experts

    return _hook(router, swap)


@contextlib.contextmanager
def _hook(module, function):
    handle = module.register_forward_hook(function)
    try:
        yield
    finally:
        handle.remove()


def as_routed(model, run):
    """What ``run()`` returns, then what it returns with each near tie decided the other way."""
    yield run()
    for router, row in near_ties(model, run):
        with other_choice(router, row):
            yield run()
