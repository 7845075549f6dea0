"""The experiment of finetuning.py in small, for a CPU: one recipe, one objective, one process.

    python examples/finetuning.py turns smollm2 --out turns.jsonl --tasks multikey:4 --length 288 \
        --count 240 --texts 80 --seed 100
    python examples/finetuning.py held-out smollm2 --out held-out.jsonl --tasks needle,multikey \
        --length 288 --seed 0
    python examples/finetuning_on_cpu.py turns.jsonl held-out.jsonl --objective kl --out FOLDER

Nothing is generated: an answer counts as right when, after the words that begin it, every token of
the number asked for is the most likely one, which is what greedy decoding would say.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import torch

import swaa
from finetuning import perplexity, read_samples
from swaa import results
from swaa.config import SWAAConfig
from swaa.evaluation.prompt import Prompt
from swaa.statistics import mcnemar, wilson
from swaa.models import load_model
from swaa.training.forward import detach_losses
from swaa.training.run import train
from swaa.training.settings import TrainingSettings

RECIPE = SWAAConfig(window=64, sink_tokens=8, full_decode=True)


def ask(model, tokenizer, samples):
    """Whether each sample's number is what greedy decoding would say, by id."""
    prompt = Prompt(tokenizer=tokenizer, prefix=False)
    found = {}
    for _, sample in samples.values():
        before = prompt.encode(prompt.text(sample.context, sample.question))
        words = tokenizer(sample.answer_prefix, add_special_tokens=False)["input_ids"]
        number = tokenizer(f" {sample.answers[0]}", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*before, *words, *number]])
        rows = torch.arange(ids.shape[1])[None] >= len(before)
        with torch.inference_mode(), swaa.attention_rows(rows):
            logits = model(input_ids=ids, logits_to_keep=len(number) + 1).logits[0, :-1]
        found[sample.id] = logits.argmax(-1).tolist() == number
    return found


def task_rows(state, found, before, samples):
    """Accuracy of each task, and McNemar's p against the state before."""
    rows = []
    for name in dict.fromkeys(task.name for task, _ in samples.values()):
        ids = [key for key, (task, _) in samples.items() if task.name == name]
        ours = [found[key] for key in ids]
        low, high = wilson(sum(ours), len(ours))
        row = {"state": state, "task": name, "samples": len(ours), "right": sum(ours)}
        row |= {"accuracy": sum(ours) / len(ours), "low": low, "high": high}
        if before is not None:
            row["p_against_before"] = mcnemar(ours, [before[key] for key in ids])
        rows.append(row)
    return rows


def main():
    """Measure full attention and the recipe, train, measure again, write one result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("conversations", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--objective", required=True)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", default="results")
    parser.add_argument("--texts", type=int, default=8)
    args = parser.parse_args()
    started = time.perf_counter()
    loaded = load_model(args.model, dtype="bfloat16", device="cpu")
    samples, made = read_samples(args.samples)
    model, tokenizer = loaded.model, loaded.tokenizer
    full = ask(model, tokenizer, samples)
    rows = task_rows("full", full, None, samples)
    text_before = perplexity(loaded, args.texts, tokens=256)
    swaa.adapt(model, RECIPE)
    before = ask(model, tokenizer, samples)
    swaa.restore(model)
    rows += task_rows("before", before, None, samples)
    print(*map(json.dumps, rows), sep="\n", flush=True)
    settings = TrainingSettings(
        objective=args.objective,
        learning_rate=args.learning_rate,
        batch_size=8,
        accumulate=1,
        max_length=1024,
        checkpointing=False,
    )
    done = train(
        loaded,
        RECIPE,
        args.conversations,
        args.out,
        settings,
        name=args.model,
        reload=None,
        progress=lambda share, logs: print(f"{share:.2f} {logs['loss']:.3f}", flush=True),
    )
    model.eval()
    detach_losses(model)
    rows += task_rows(args.objective, ask(model, tokenizer, samples), before, samples)
    swaa.restore(model)
    # What training changed in full attention's own answers, against full attention before.
    again = f"{args.objective}, full attention"
    rows += task_rows(again, ask(model, tokenizer, samples), full, samples)
    text_after = perplexity(loaded, args.texts, tokens=256)
    changes = [a - b for a, b in zip(text_after, text_before, strict=True)]
    rows.append(
        {
            "state": args.objective,
            "task": "perplexity of 256 tokens, full attention, adapter on",
            "samples": len(changes),
            "perplexity": math.exp(sum(text_after) / len(text_after)),
            "rise": math.exp(sum(changes) / len(changes)) - 1,
        }
    )
    record = json.loads((args.out / "training.json").read_text("utf-8"))
    result = results.Result(
        kind="train",
        name=f"smollm2-on-cpu-{args.objective.replace('+', '-')}",
        config={
            **{key: record[key] for key in ("swaa", "settings", "data", "data_revision")},
            "model": loaded.name,
            "measured": {**made, "samples": len(samples), "by": "teacher forcing"},
        },
        rows=tuple(rows),
        provenance=dataclasses.replace(
            results.record_provenance(
                dtype="bfloat16",
                model=loaded.name,
                model_revision=loaded.revision,
                data=args.conversations.name,
                data_revision=record["data_revision"],
                seed=made["seed"],
                seconds=time.perf_counter() - started,
                packages=("trl", "peft", "accelerate"),
            )
        ),
    )
    print(results.save(result, samples=done.rows, folder=args.results))
    print(*map(json.dumps, rows), sep="\n")


if __name__ == "__main__":
    main()
