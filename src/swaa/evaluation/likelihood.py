"""A run of `perplexity`: likelihoods instead of answers, resumed like any other run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from swaa.config import SWAAConfig
from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample
from swaa.evaluation.tasks.perplexity import BLOCK, answer_from, encode, split
from swaa.files import SamplesFile


@runtime_checkable
class LikelihoodEngine(Protocol):
    """An engine that can compute how likely a text is."""

    def read(self, texts: Sequence[tuple[Sequence[int], int]]) -> Iterator[Tensor]:
        """``[tokens - 1]`` in nats per text; its number is where tokens count as generated."""
        ...


def measure(
    prompt: Prompt,
    samples: Sequence[Sample],
    engine: object,
    file: SamplesFile,
    progress: Callable[[int], None] | None,
) -> None:
    """Append a record of each text that has none yet.

    Raises:
        ValueError: for an engine without likelihoods.
    """
    if not isinstance(engine, LikelihoodEngine):
        raise ValueError("perplexity needs a model loaded here; it cannot be asked of an endpoint")
    done = {record["id"] for record in file.samples}
    left = [sample for sample in samples if sample.id not in done]
    texts = [(encode(prompt, sample.context), answer_from(sample.length)) for sample in left]
    if progress is not None:
        progress(len(done))
    for sample, (_, first), nll in zip(left, texts, engine.read(texts), strict=True):
        file.append(_record(sample, first, nll))
        done.add(sample.id)
        if progress is not None:
            progress(len(done))


def summarize(samples: Sequence[dict[str, Any]], config: SWAAConfig) -> list[dict[str, Any]]:
    """One row for each kind of position: nats per token, and perplexity."""
    means = split(samples, window=config.window, sink_tokens=config.sink_tokens)
    return [
        {"place": name, "samples": len(samples), "nll": nll, "perplexity": math.exp(nll)}
        for name, nll in means.items()
        if nll is not None
    ]


def _record(sample: Sample, first: int, nll: Tensor) -> dict[str, Any]:
    # Nothing predicts the first token of a text, so its block has one value less.
    cuts = [0, *range(BLOCK - 1, len(nll), BLOCK), len(nll)]
    parts = [nll[start:end] for start, end in itertools.pairwise(cuts) if end > start]
    return {
        "id": sample.id,
        "length": sample.length,
        "answer_from": first,
        "blocks": [[round(float(part.double().sum()), 6), len(part)] for part in parts],
    }
