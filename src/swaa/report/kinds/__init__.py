"""One reader for each kind of result: what its runs show in the figures."""

from __future__ import annotations

from collections.abc import Callable

from swaa.report.figures import Figures, model_name
from swaa.report.folder import Problem, Run
from swaa.report.kinds import (
    demo,
    eval,
    generate,
    kernels,
    long_prompt,
    selection,
    serve,
    train,
    tune,
)

READERS: dict[str, Callable[[Run], Figures]] = {
    "demo": demo.read,
    "eval": eval.read,
    "generate": generate.read,
    "kernels": kernels.read,
    "selection": selection.read,
    "serve": serve.read,
    "sglang": long_prompt.read,
    "train": train.read,
    "tune": tune.read,
    "vllm": long_prompt.read,
}
"""Kinds that have a figure; runs of other kinds are listed with their rows."""


def figures_of(run: Run) -> tuple[Figures, Problem | None]:
    """What a run shows, and the reason if it could not show everything."""
    result = run.result
    subject = model_name(result.provenance.model or result.name)
    reader = READERS.get(result.kind)
    if reader is None:
        reason = f"kind {result.kind!r} has no figure in this swaa; its rows are in the table"
        return Figures(subject=subject), Problem(path=run.path, message=reason)
    try:
        return reader(run), None
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        reason = f"cannot be drawn as {result.kind!r}: {type(error).__name__} {error}"
        return Figures(subject=subject), Problem(path=run.path, message=" ".join(reason.split()))
