"""Adapted models in EleutherAI's lm-evaluation-harness, as its model ``swaa``.

The harness only looks for models in its own package, so something must register ours first::

    python -m swaa.evaluation.harness run --model swaa \
        --model_args pretrained=MODEL,recipe=balanced --tasks hellaswag

does that and then runs ``lm_eval``; from Python, importing this module registers the model. In
generation, the end of the prompt is declared automatically. For log-likelihoods each row of a
batch has its own context: the context slides, its last ``dense_tail`` tokens see all of it, and
the scored continuation counts as generated, so that it follows full decode. Rolling
log-likelihoods have no continuation: the whole text counts as prompt.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from swaa.adaptation import adapt
from swaa.config import SWAAConfig
from swaa.extras import install_line
from swaa.models import find_model, load_model
from swaa.phase import prompt_length
from swaa.recipes import resolve

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError(
        f"the harness needs lm-eval ({error}); run: {install_line('lm-eval')}"
    ) from None

Base: Any = HFLM  # untyped, so that type checkers see the same without the harness

KNOBS = tuple(field.name for field in dataclasses.fields(SWAAConfig))
"""Arguments of the model that change its recipe."""

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""Key in the harness's cache (None: rolling), context, continuation."""


@register_model("swaa")
class AdaptedModel(Base):
    """A Transformers model, adapted; everything else as in the harness's own model ``hf``.

    Args:
        pretrained: a folder, a hub name, a GGUF file, or ``smollm2``.
        recipe: name of a shipped recipe, or a JSON file.
        attention: backend of the adapted model: auto, fa4, triton, sdpa or reference.
        device: in torch's notation; default: the first GPU if there is one.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``.
        batch_size: requests answered at once, a number.
        options: knobs that change the recipe (``window=1024``), and arguments of ``hf``.

    Raises:
        ValueError: for an automatic batch size, or an unusable recipe.
    """

    def __init__(
        self,
        pretrained: str,
        recipe: str = "selected",
        attention: str = "auto",
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str | None = 1,
        **options: Any,
    ) -> None:
        if not str(batch_size).isdecimal():
            raise ValueError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")
        config = resolve(recipe, **{name: options.pop(name) for name in KNOBS if name in options})
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if find_model(pretrained).gguf_file is None:
            super().__init__(pretrained, device=device, dtype=dtype, **options)
        else:
            loaded = load_model(pretrained, device=device, dtype=dtype)
            super().__init__(loaded.model, tokenizer=loaded.tokenizer, **options)
        self.batch_size_per_gpu = int(str(batch_size))
        if config.window is not None:
            # Prints what is active, where the harness logs its own arguments.
            adapt(self.model, config, backend=attention)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would produce it."""
        size = override_bs or self.batch_size_per_gpu
        # Longest first: a lack of memory shows at once.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1] + requests[i][2]))
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(order), disable=disable_tqdm or self.rank != 0) as bar:
            for first in range(0, len(order), size):
                part = order[first : first + size]
                values = self._score([requests[place] for place in part])
                found.update(zip(part, values, strict=True))
                for place in part:
                    if (key := requests[place][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", key, found[place])
                bar.update(len(part))
        return [found[place] for place in range(len(requests))]

    def _score(self, batch: Sequence[Request]) -> list[tuple[float, bool]]:
        rows = [self._row(context, continuation) for _, context, continuation in batch]
        longest = max(map(len, rows))
        # Padded on the left, so that the scored rows are the last and only those need logits.
        ids = torch.zeros((len(rows), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, longest - len(row) :] = torch.tensor(row)
            mask[place, longest - len(row) :] = 1
        prompts = [
            # The last token of a continuation is predicted, never read.
            longest if key is None else longest - len(continuation) + 1
            for key, _, continuation in batch
        ]
        logits = self._logits(ids, mask, prompts, max(len(item[2]) for item in batch))
        return [_scored(values, item[2]) for values, item in zip(logits, batch, strict=True)]

    def _row(self, context: list[int], continuation: list[int]) -> list[int]:
        if len(continuation) > self.max_length:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens; the model sees"
                f" {self.max_length}: set max_length in --model_args, or leave the task out"
            )
        return [*context, *continuation][-(self.max_length + 1) : -1]

    def _logits(self, ids: Tensor, mask: Tensor, prompts: Sequence[int], last: int) -> Tensor:
        """Logits of the last rows, float32, ``[batch, last, vocabulary]``."""
        model: Any = self.model
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        inputs: dict[str, Any] = {
            "input_ids": ids, "attention_mask": mask, "position_ids": positions,
        }  # fmt: skip
        accepted = inspect.signature(model.forward).parameters
        inputs = {k: v.to(self.device) for k, v in inputs.items() if k in accepted}
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = last
        declared = torch.tensor(prompts, dtype=torch.int32, device=self.device)
        with torch.inference_mode(), prompt_length(declared):
            return model(**inputs, use_cache=False).logits[:, -last:].float()


def _scored(logits: Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """Sums over a continuation, whose predictions are the last rows."""
    rows = logits[len(logits) - len(continuation) :].log_softmax(-1)
    targets = torch.tensor(continuation, device=rows.device)
    likely = rows.gather(-1, targets[:, None]).double().sum()
    return float(likely), bool((rows.argmax(-1) == targets).all())


def main() -> None:
    """The harness's own command line, with the model ``swaa``."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
