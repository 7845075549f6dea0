"""Which score chooses the pages that a generated token reads (`decode_keys`)?

A model reads a prompt with full attention and answers it. Then its own answer is read again, all
tokens at once, each seeing sinks, window, and the pages that a score ranks first; everything else is
as before. Reported is how far the next-token distributions move from those of full decode (KL
divergence, nats a token), and how many answers keep each token the most likely one.

    python examples/page_scores.py MODEL --length 4096 --window 512 --sink-tokens 32 \
        --budgets 128,256,512 --count 8

`mean+std` with pages of 16 keys is what swaa does; `quest` are bounds of the keys (arXiv
2406.10774), `gaussian` is the log of the mean of exp if a page's keys were normally distributed, and
`mass` the true sum over a page, which needs all its keys. `max` takes the largest score among the
query heads that share a key head; `share` compares their softmax shares instead.
"""

import argparse
import itertools
import json
import time
from dataclasses import dataclass

import torch
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from swaa import results
from swaa.evaluation.prompt import Prompt
from swaa.evaluation.tasks import find_tasks
from swaa.models import load_model, model_revision

NAME = "page_scores"
LOWEST = float("-inf")


@dataclass(frozen=True)
class Rule:
    """How pages are ranked, and how many keys are chosen; no score: none."""

    score: str
    heads: str = "max"
    page: int = 16
    keys: int = 0


def scores(kind, q, k, logits, page):
    """Each page's score for each row: [kv_heads, group, rows, pages].

    `q` is [kv_heads, group, rows, head_dim], scaled; `k` [kv_heads, tokens, head_dim], whole pages;
    `logits` their product.
    """
    pages = k.unflatten(1, (-1, page))
    by = "kgrd,kpd->kgrp"
    if kind == "mass":
        return logits.unflatten(-1, (-1, page)).logsumexp(-1)
    if kind == "quest":
        least, most = pages.amin(2), pages.amax(2)
        return torch.einsum(by, q.clamp(min=0), most) + torch.einsum(by, q.clamp(max=0), least)
    std, mean = torch.std_mean(pages, dim=2, correction=0)
    found = torch.einsum(by, q, mean)
    if kind == "gaussian":
        return found + torch.einsum(by, q * q, std * std) / 2
    return found if kind == "mean" else found + torch.einsum(by, q.abs(), std)


def chosen(rule, q, k, logits, positions, near):
    """Which keys the pages of a rule add: bool [kv_heads, rows, tokens]."""
    window, sinks = near
    whole = k.shape[1] // rule.page * rule.page
    ranked = scores(rule.score, q, k[:, :whole], logits[..., :whole], rule.page)
    number = torch.arange(ranked.shape[-1], device=q.device)
    seen = positions + 1
    end = torch.minimum(-((window - seen) // rule.page), seen // rule.page)
    open_to = (number >= sinks // rule.page) & (number < end[:, None])
    ranked = ranked.masked_fill(~open_to, LOWEST)
    ranked = (ranked.softmax(-1) if rule.heads == "share" else ranked).amax(1)
    ranked = ranked.masked_fill(~open_to, LOWEST)
    best = ranked.topk(min(rule.keys // rule.page, len(number)), dim=-1).indices
    pages = torch.zeros_like(ranked, dtype=torch.bool).scatter_(2, best, True) & open_to
    keys = pages.repeat_interleave(rule.page, dim=2)
    return torch.nn.functional.pad(keys, (0, k.shape[1] - whole))


class Reader:
    """The model under a rule, by an attention function of its own."""

    def __init__(self, loaded, near):
        self.model, self.near, self.rule = loaded.model, near, None
        ALL_ATTENTION_FUNCTIONS.register(NAME, self.attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *args, **kwargs: None)
        self.model.set_attn_implementation(NAME)

    def attend(self, module, q, k, v, mask, scaling=None, **kwargs):
        """One sequence; without a rule, full attention."""
        if self.rule is None:
            stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
            return stock(module, q, k, v, None, scaling=scaling, is_causal=q.shape[2] > 1)
        window, sinks = self.near
        kv_heads, tokens = k.shape[1:3]
        rows = q.shape[2]
        q = (scaling * q[0].float()).unflatten(0, (kv_heads, -1))
        keys, values = k[0].float(), v[0].float()
        logits = torch.einsum("kgrd,ktd->kgrt", q, keys)
        key = torch.arange(tokens, device=q.device)
        row = key[tokens - rows :]
        past = key <= row[:, None]
        visible = (past & ((key > row[:, None] - window) | (key < sinks))).expand(kv_heads, -1, -1)
        if self.rule.score == "full":
            visible = past.expand(kv_heads, -1, -1)
        elif self.rule.keys:
            visible = visible | chosen(self.rule, q, keys, logits, row, self.near) & past
        weights = logits.masked_fill(~visible[:, None], LOWEST).softmax(-1)
        out = torch.einsum("kgrt,ktd->kgrd", weights, values).flatten(0, 1)
        return out.transpose(0, 1)[None].to(v.dtype).contiguous(), None

    def answer(self, ids, cache, most, ends):
        """The prompt's last token and the model's own answer; the cache keeps all but these."""
        self.rule, tokens = None, [ids[-1]]
        device = self.model.device
        self.model(torch.tensor([ids[:-1]], device=device), past_key_values=cache, logits_to_keep=1)
        prompt = cache.get_seq_length()
        for _ in range(most):
            last = torch.tensor([tokens[-1:]], device=device)
            logits = self.model(last, past_key_values=cache, logits_to_keep=1).logits
            if (token := int(logits[0, -1].argmax())) in ends:
                break
            tokens.append(token)
        cache.crop(prompt - cache.get_seq_length())
        return tokens

    def read(self, tokens, cache, rule):
        """Log-probabilities after each token under a rule: [tokens, vocabulary]."""
        self.rule = rule
        ids = torch.tensor([tokens], device=self.model.device)
        logits = self.model(ids, past_key_values=cache).logits[0]
        cache.crop(-len(tokens))
        return logits.float().log_softmax(-1)


def main():
    """Measure, print a table, keep a result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tasks", default="variable_tracking,multikey")
    parser.add_argument("--length", type=int, default=16_384)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--sink-tokens", type=int, default=128)
    parser.add_argument("--budgets", default="512,1024,2048")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", default="results")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    loaded = load_model(args.model, dtype=args.dtype, device=args.device)
    began = time.perf_counter()
    reader = Reader(loaded, (args.window, args.sink_tokens))
    budgets = [int(word) for word in args.budgets.split(",")]
    rules = [
        Rule(score, heads, 16, keys)
        for keys, score, heads in itertools.product(
            budgets, ("mean", "mean+std", "gaussian", "quest", "mass"), ("max", "share")
        )
    ]
    rules += [Rule("mean+std", "max", page, keys) for keys in budgets for page in (32, 64)]
    rules.append(Rule("none"))
    ends = {loaded.tokenizer.eos_token_id}
    found = {}
    for task in find_tasks(args.tasks.split(",")):
        prompt = Prompt(tokenizer=loaded.tokenizer)
        made = task.samples(prompt, length=args.length, count=args.count, seed=args.seed)
        for number, sample in enumerate(made, 1):
            text = prompt.text(sample.context, sample.question, sample.answer_prefix)
            cache = DynamicCache()
            ids = prompt.encode(text)
            tokens = reader.answer(ids, cache, args.new_tokens, ends)
            full = reader.read(tokens, cache, Rule("full"))
            best, weights = full.argmax(-1), full.exp()
            for rule in rules:
                ours = reader.read(tokens, cache, rule)
                moved = float((weights * (full - ours)).sum(-1).mean())
                same = bool((ours.argmax(-1) == best).all())
                found.setdefault((task.name, rule), []).append((moved, same))
            print(f"{task.name}: {number} of {len(made)}", flush=True)
    rows = [
        {
            "task": name,
            **vars(rule),
            "samples": len(values),
            "kl": sum(moved for moved, _ in values) / len(values),
            "same": sum(same for _, same in values),
        }
        for (name, rule), values in found.items()
    ]
    for row in rows:
        print(json.dumps(row))
    asked = {key: value for key, value in vars(args).items() if key not in ("results", "device")}
    result = results.Result(
        kind="selection",
        name="pages",
        config={**asked, "model": loaded.name},
        rows=tuple(rows),
        provenance=results.record_provenance(
            device=str(loaded.model.device),
            dtype=loaded.model.dtype,
            model=loaded.name,
            model_revision=model_revision(args.model, loaded),
            seed=args.seed,
            seconds=time.perf_counter() - began,
        ),
    )
    print(results.save(result, folder=args.results))


if __name__ == "__main__":
    main()
