"""Tiny models for serving engines, and the judge of their tokens: a model under loop masks."""

import contextlib
import copy
import os

import torch

from tests.integrations.families import tiny_model
from tests.integrations.loop_model import LOOP, build_masks, loop_logits, positions, rows_of

VOCABULARY = 97
ON_GPU = os.environ.get("SWAA_TEST_DEVICE") == "cuda"
TOLERANCE = 1e-3 if ON_GPU else 2e-4
# The engines' stock Triton kernels, which full layers run on here, round float32 to TF32.
STOCK_TOLERANCE = 5e-2 if ON_GPU else TOLERANCE


def save_model(folder, family, kv_heads=2, **extra):
    """Save a tiny random float32 model; ``extra`` goes into its config.json."""
    torch.manual_seed(0)
    # Heads of 32 numbers: the smallest that vLLM's own CPU attention serves.
    sizes = {"hidden_size": 128, "head_dim": 32, "max_position_embeddings": 8192}
    sizes |= {"num_attention_heads": 2 * kv_heads, "num_key_value_heads": kv_heads}
    model = tiny_model(family, initializer_range=0.2, **sizes)
    for name, value in extra.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    return str(folder)


def checkpoints(tmp_path_factory):
    """A function that makes a folder with a tiny random model of a family, each once."""
    made = {}

    def folder(family="qwen3", **extra):
        key = (family, repr(extra))
        if key not in made:
            made[key] = save_model(tmp_path_factory.mktemp(family), family, **extra)
        return made[key]

    return folder


def prompts_of(*lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


class Judge:
    """The model under the rule of the mask, in Transformers."""

    implementation = LOOP

    def __init__(self, folder, config):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )
        for module in self.model.modules():
            # vLLM's Transformers backend wraps these very classes for compilation, and asks.
            module.do_not_compile = True
        self.config = config
        self.layers = ["full_attention"] * self.model.config.num_hidden_layers

    @property
    def near(self):
        """How far log-probabilities may be apart."""
        return STOCK_TOLERANCE if self.config.full_layers else TOLERANCE

    def under(self, config):
        """The same model under another configuration."""
        other = copy.copy(self)
        other.config = config
        return other

    def check(self, prompt, answer, greedy=True):
        """An engine's tokens and their log-probabilities are those of the model.

        On a GPU a token may also be one that the model finds as likely, up to rounding, and one
        row may be sent to the expert that its router finds as good, up to rounding.
        """
        ids = list(answer.token_ids)
        said = [chosen[token].logprob for chosen, token in zip(answer.logprobs, ids, strict=True)]
        # Closed, because a reading that is left half read leaves its row where it was sent.
        with contextlib.closing(self.readings(prompt, ids)) as readings:
            try:
                self._compare(ids, said, next(readings), greedy)
            except AssertionError:
                if not any(self._agrees(ids, said, logits, greedy) for logits in readings):
                    raise

    def readings(self, prompt, answer):
        """Logits as the model has them; on a GPU also with each near tie of a router reversed."""
        if ON_GPU:
            from tests.vllm.routers import as_routed

            yield from as_routed(self.model, lambda: self.logits(prompt, answer))
        else:
            yield self.logits(prompt, answer)

    def _agrees(self, *compared):
        try:
            self._compare(*compared)
        except AssertionError:
            return False
        return True

    def _compare(self, ids, said, logits, greedy):
        near = self.near
        scores = logits.log_softmax(-1)
        expected = scores[range(len(ids)), ids]
        if greedy and ON_GPU:
            lost = float((scores.max(-1).values - expected).max())
            assert lost <= 2 * near, f"{lost} less likely than the model's own token"
        elif greedy:
            assert scores.argmax(-1).tolist() == ids
        torch.testing.assert_close(torch.tensor(said), expected, atol=near, rtol=near)

    def logits(self, prompt, answer):
        """Logits of the rows that emit the answer's tokens, ``[answer, vocabulary]``."""
        ids = torch.tensor([[*prompt, *answer]])
        total = ids.shape[1]
        rows = rows_of(len(prompt), self.config.dense_tail, total)
        heads = self.model.config.num_key_value_heads
        masks = build_masks(self.config, self.layers, [0], total, rows, kv_heads=heads)
        logits = loop_logits(
            self.model, ids, masks, positions([0], total), implementation=self.implementation
        )
        return logits[0, len(prompt) - 1 : -1]
