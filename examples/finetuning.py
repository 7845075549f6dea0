"""Does training bring back what a recipe lost? The experiment behind results/train.

These commands, in this order, made what docs/measurements/training.md reports of a GPU. R.json is
a recipe, and R its name:

    python examples/finetuning.py turns MODEL --out turns.jsonl --tasks multikey:5 --count 360 \
        --texts 90 --seed 100
    python examples/finetuning.py held-out MODEL --out held-out.jsonl --seed 0 \
        --tasks needle,multikey,multiquery:2
    python examples/finetuning.py measure MODEL --state full --recipe R.json --out R-full.json \
        --samples held-out.jsonl --device cuda --dtype bfloat16       # and --state before
    swaa train MODEL --data turns.jsonl --out R-kl --recipe R.json --objective kl --max-steps 12 \
        --learning-rate 2e-4 --max-length 5000 --batch-size 8 --accumulate 1 --epochs 4
    python examples/finetuning.py measure R-kl/merged --state kl ...
    python examples/finetuning.py collect R-*.json --name R --model MODEL --trainings . \
        --results results
    python examples/finetuning.py draw results/train/*.json --out training.png

`questions` is for `swaa distill`: the model's own words to train on, instead of `turns`.
`answers` is for tasks whose texts hold one question each, such as chains of assignments: prompts of
several lengths, each with its answer in the words that the models use; with `--code`, also
questions about definitions in the standard library's sources.
Questions to train on hide their facts in the first part of the shipped novel, those to measure by
in the last part, and no seed serves both.
"""

import argparse
import dataclasses
import json
import math
import random
import re
import sysconfig
import time
from pathlib import Path

from swaa import results
from swaa.config import SWAAConfig
from swaa.evaluation.engines import Request, make_batches
from swaa.evaluation.engines.transformers import TransformersEngine
from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample
from swaa.evaluation.sources import load_tokenizer
from swaa.statistics import mcnemar, retention, wilson
from swaa.evaluation.tasks import find_tasks
from swaa.evaluation.tasks.haystack import read_filler
from swaa.models import load_model
from swaa.recipes import resolve

TRAINED = (0.0, 0.4)
HELD_OUT = (0.58, 0.83)
"""Parts of the shipped novel where texts begin; one of 4,096 tokens is 0.16 of it long."""

STATES = ("full", "before", "sft", "kl", "sft+kl")


class PartRandom(random.Random):
    """Randomness whose `choice`, which picks where a text begins, keeps to a part of the novel."""

    def __init__(self, seed, part):
        super().__init__(seed)
        self._bounds = [share * len(read_filler()) for share in part]

    def choice(self, seq):
        first, last = self._bounds
        return super().choice([place for place in seq if first <= place < last])


def make_samples(prompt, names, *, length, count, seed, part):
    """`count` samples of each task, with whole answers in the model's own words."""
    made = []
    for task in find_tasks(names):
        for index in range(count):
            chance = PartRandom(f"{task.name} {length} {seed} {index}", part)
            name = f"{task.name}-{length}-{seed}-{index}"
            made.append((task, task.sample(prompt, name, length, index, chance)))
    return made


def write_questions(args):
    """Questions for `swaa distill`."""
    prompt = Prompt(tokenizer=load_tokenizer(args.model), prefix=False)
    made = make_samples(
        prompt, args.tasks, length=args.length, count=args.count, seed=args.seed, part=TRAINED
    )
    with args.out.open("w", encoding="utf-8") as file:
        for _, sample in made:
            row = {
                "context": sample.context,
                "question": sample.question,
                "answers": list(sample.answers),
                "max_new_tokens": args.max_new_tokens,
            }
            file.write(json.dumps(row) + "\n")


FUNCTION = re.compile(r" *(?:async )?def (\w{6,})\(.*\).*:")
FACT = re.compile(r"One of the special magic numbers for (\w+) is: (\d+)\.")


def write_turns(args):
    """Conversations to train on: every fact of a text is asked for in turn.

    An answer is a dozen tokens after thousands, so several questions to one text teach several
    times as much at the same price. Texts of the novel to continue preserve the language: there the
    answer is long, and the model must not lose what full attention says.
    """
    prompt = Prompt(tokenizer=load_tokenizer(args.model), prefix=False)
    made = make_samples(
        prompt, args.tasks, length=args.length, count=args.count, seed=args.seed, part=TRAINED
    )
    conversations = [turns(sample) for _, sample in made]
    conversations += [continuation(place / args.texts) for place in range(args.texts)]
    random.Random(args.seed).shuffle(conversations)
    with args.out.open("w", encoding="utf-8") as file:
        for messages in conversations:
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def turns(sample):
    """Question and answer for each hidden fact, the one that the sample asks for first."""
    facts = dict(FACT.findall(sample.context))
    (asked,) = (name for name in facts if f" {name} " in sample.question)
    messages = []
    for name in sorted(facts, key=lambda name: name != asked):
        question = sample.question.replace(asked, name)
        if not messages:
            question = f"{sample.context}\n\n{question}"
        answer = f"{sample.answer_prefix.replace(asked, name)} {facts[name]}."
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def write_answers(args):
    """Conversations of one question each, in prompts of several lengths."""
    prompt = Prompt(tokenizer=load_tokenizer(args.model), prefix=False)
    conversations = [continuation(place / args.texts) for place in range(args.texts)]
    for length in args.lengths:
        made = make_samples(
            prompt, args.tasks, length=length, count=args.count, seed=args.seed, part=TRAINED
        )
        conversations += [answered(task, sample) for task, sample in made]
        conversations += [
            about_code(prompt, length, random.Random(f"code {length} {args.seed} {index}"))
            for index in range(args.code)
        ]
    random.Random(args.seed).shuffle(conversations)
    with args.out.open("w", encoding="utf-8") as file:
        for messages in conversations:
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def answered(task, sample):
    """A question and its answer."""
    chain = task.name.startswith("variable_tracking")
    answer = ", ".join(f"VAR {name}" if chain else name for name in sample.answers)
    return [
        {"role": "user", "content": f"{sample.context}\n\n{sample.question}"},
        {"role": "assistant", "content": f"{sample.answer_prefix} {answer}"},
    ]


def about_code(prompt, length, chance):
    """How a function is defined that `length` tokens of the standard library's sources hold."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
    left, sources = length - 200, []
    for path in chance.sample(modules, len(modules)):
        ids = prompt.tokenizer.encode(f"# {path.name}\n{path.read_text('utf-8')}\n")
        sources.append(prompt.tokenizer.decode(ids[:left]))
        left -= len(ids)
        if left <= 0:
            break
    code = "".join(sources)
    lines = code[: len(code) // 2].splitlines()
    definitions = [found for line in lines if (found := FUNCTION.fullmatch(line))]
    names = [found[1] for found in definitions]
    found = chance.choice([found for found in definitions if names.count(found[1]) == 1])
    question = f"With which line does the definition of `{found[1]}` in the code above begin?"
    answer = f"The definition of `{found[1]}` begins with this line: `{found[0].strip()}`"
    return [
        {"role": "user", "content": f"{code}\n\n{question}"},
        {"role": "assistant", "content": answer},
    ]


def continuation(depth, letters=1200):
    """A sentence of the novel's first part, and how it continues."""
    text = read_filler()
    first = text.index(". ", int((TRAINED[0] + depth * (TRAINED[1] - TRAINED[0])) * len(text))) + 2
    begun, rest = text[first : first + letters].split(". ", 1)
    return [
        {"role": "user", "content": f"Go on with this text: {begun}."},
        {"role": "assistant", "content": rest[: rest.rfind(".") + 1] or rest},
    ]


def write_held_out(args):
    """Samples to measure by, made once for all states."""
    prompt = Prompt(tokenizer=load_tokenizer(args.model), prefix=False)
    made = make_samples(
        prompt, args.tasks, length=args.length, count=args.count, seed=args.seed, part=HELD_OUT
    )
    with args.out.open("w", encoding="utf-8") as file:
        for task, sample in made:
            longest = max(args.max_new_tokens, sample.max_new_tokens)
            values = dataclasses.asdict(dataclasses.replace(sample, max_new_tokens=longest))
            row = {"made": {"task": task.name, "length": args.length, "seed": args.seed}}
            file.write(json.dumps({**row, "sample": values}) + "\n")


def read_samples(path):
    """Task and sample of each line, and how they were made."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    tasks = {row["made"]["task"]: None for row in rows}
    tasks = {name: find_tasks([name])[0] for name in tasks}
    samples = {}
    for row in rows:
        values = {**row["sample"], "answers": tuple(row["sample"]["answers"])}
        samples[values["id"]] = (tasks[row["made"]["task"]], Sample(**values))
    return samples, rows[0]["made"]


def measure(args):
    """Answers of one model in one state, and its perplexity on short text."""
    started = time.perf_counter()
    loaded = load_model(args.model, dtype=args.dtype, device=args.device)
    config = SWAAConfig(window=None) if args.state == "full" else resolve(args.recipe)
    prompt = Prompt(tokenizer=loaded.tokenizer, prefix=False)
    tasks, made = read_samples(args.samples)
    names = list(dict.fromkeys(task.name for task, _ in tasks.values()))
    requests = [
        Request(
            id=sample.id,
            ids=tuple(prompt.encode(prompt.text(sample.context, sample.question))),
            content="",
            max_new_tokens=sample.max_new_tokens,
        )
        for _, sample in tasks.values()
    ]
    answers = []
    with TransformersEngine(loaded, config, backend=args.backend) as engine:
        for reply in engine.answer(make_batches(requests, args.batch_size)):
            task, sample = tasks[reply.id]
            score = task.score(sample, prompt.final_answer(reply.output))
            row = {"id": reply.id, "task": task.name, "score": score.value, "output": reply.output}
            answers.append({"state": args.state, **row})
    answers.sort(key=lambda answer: answer["id"])
    values = {
        "state": args.state,
        "swaa": resolve(args.recipe).to_dict(),
        "tasks": names,
        "length": made["length"],
        "count": len(tasks) // len(names),
        "seed": made["seed"],
        "device": args.device,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "answers": answers,
        "nll": perplexity(loaded, args.texts),
        "commit": results.record_provenance().commit,
        "seconds": time.perf_counter() - started,
    }
    args.out.write_text(json.dumps(values), encoding="utf-8")
    for name in names:
        scores = [a["score"] for a in answers if a["task"] == name]
        right = sum(score == 1 for score in scores)
        print(args.state, config.describe(), name, f"{right} of {len(scores)}", flush=True)


def perplexity(loaded, count, tokens=512):
    """Mean nats a token of held-out texts that fit every window, full attention; one a text."""
    text = read_filler()[int(HELD_OUT[0] * len(read_filler())) :]
    ids = loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    parts = [ids[first : first + tokens] for first in range(0, len(ids) - tokens, tokens)]
    with TransformersEngine(loaded, SWAAConfig(window=None)) as engine:
        return [
            float(engine.negative_log_likelihoods(part, answer_from=tokens).double().mean())
            for part in parts[:count]
        ]


def collect(args):
    """One result file for a recipe, out of the parts of its states."""
    parts = {}
    for path in args.parts:
        values = json.loads(path.read_text("utf-8"))
        parts[values["state"]] = values
    states = [state for state in STATES if state in parts]
    first = parts[states[0]]
    trainings = {
        state: json.loads((args.trainings / f"{args.name}-{state}" / "training.json").read_text())
        for state in states
        if state not in ("full", "before")
    }
    identity = {
        "model": args.model,
        "swaa": parts["before"]["swaa"],
        **{key: first[key] for key in ("tasks", "length", "count", "seed", "dtype")},
        "trainings": {
            state: {key: values[key] for key in ("settings", "data_revision")}
            for state, values in trainings.items()
        },
    }
    rows = [row for state in states for row in task_rows(parts, state)]
    rows += [perplexity_row(parts, state) for state in states if state != "full"]
    rows += [
        {"state": state, "task": "training", "steps": values["steps"], "seconds": seconds(values)}
        for state, values in trainings.items()
    ]
    provenance = find_provenance(args, first, trainings)
    for row in rows:
        commit = parts[row["state"]].get("commit", provenance.commit)
        if row["task"] != "training" and commit != provenance.commit:
            row["commit"] = commit
    result = results.Result(
        kind="train",
        name=args.name,
        config=identity,
        rows=tuple(rows),
        provenance=provenance,
    )
    samples = [answer for state in states for answer in parts[state]["answers"]]
    for state in trainings:
        curve = args.trainings / f"{args.name}-{state}" / "loss.jsonl"
        samples += [{"state": state, **json.loads(line)} for line in curve.open()]
    print(results.save(result, samples=samples, folder=args.results))
    for row in rows:
        print(json.dumps(row))


def find_provenance(args, first, trainings):
    """Of the first training: what is collected here may have been run on another machine."""
    known = {"dtype": first["dtype"], "model": args.model, "seed": first["seed"]}
    if not trainings:
        return results.record_provenance(device=first["device"], **known)
    training = next(iter(trainings.values()))
    known |= {"data": training["data"], "data_revision": training["data_revision"]}
    ran = {**training["provenance"], "seconds": None}  # each training has a row of its own
    return dataclasses.replace(results.Provenance(**ran), **known)


def seconds(training):
    """Wall time of a training's steps."""
    return training["provenance"]["seconds"]


def task_rows(parts, state):
    """Accuracy of each task with its interval, against full attention and against before."""
    rows = []
    for name in parts[state]["tasks"]:
        ours, before, full = (right(parts.get(s), name) for s in (state, "before", "full"))
        low, high = wilson(sum(ours), len(ours))
        row = {"state": state, "task": name, "samples": len(ours), "right": sum(ours)}
        row |= {"accuracy": sum(ours) / len(ours), "low": low, "high": high}
        scores = [a["score"] for a in parts[state]["answers"] if a["task"] == name]
        row["score"] = sum(scores) / len(scores)
        if full:
            row["retention"] = retention(sum(ours) / len(ours), sum(full) / len(full))
            if state != "full":
                row["p_against_full"] = mcnemar(ours, full)
        if before and state not in ("full", "before"):
            row["p_against_before"] = mcnemar(ours, before)
        rows.append(row)
    return rows


def right(part, name):
    """Whether each sample was answered rightly, in the samples' order."""
    return [a["score"] == 1 for a in part["answers"] if a["task"] == name] if part else []


def perplexity_row(parts, state):
    """Perplexity of short text, and what training changed."""
    ours, before = parts[state]["nll"], parts["before"]["nll"]
    mean = sum(ours) / len(ours)
    changes = [a - b for a, b in zip(ours, before, strict=True)]
    rise = math.exp(sum(changes) / len(changes)) - 1
    row = {"state": state, "task": "perplexity of 512 tokens, full attention"}
    return row | {"samples": len(ours), "perplexity": math.exp(mean), "rise": rise}


def draw(args):
    """A PNG of result files: one panel a recipe, bars by task and state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = [results.load(path) for path in args.parts]
    figure = Figure(figsize=(4.4 * len(found), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for place, result in enumerate(found, 1):
        axes = figure.add_subplot(1, len(found), place)
        rows = [row for row in result.rows if "accuracy" in row]
        tasks = list(dict.fromkeys(row["task"] for row in rows))
        states = list(dict.fromkeys(row["state"] for row in rows))
        for number, state in enumerate(states):
            values = [row for row in rows if row["state"] == state]
            at = [tasks.index(row["task"]) + 0.8 * number / len(states) - 0.3 for row in values]
            heights = [100 * row["accuracy"] for row in values]
            errors = [
                [100 * (row["accuracy"] - row["low"]) for row in values],
                [100 * (row["high"] - row["accuracy"]) for row in values],
            ]
            axes.bar(
                at,
                heights,
                0.8 / len(states),
                yerr=errors,
                label=state,
                capsize=2,
                color=f"C{STATES.index(state)}",
            )
        axes.set_xticks(range(len(tasks)), tasks, fontsize=8)
        axes.set(ylim=(0, 105), ylabel="right, %")
        words = SWAAConfig.from_dict(result.config["swaa"]).describe()
        axes.set_title(words.replace(", ", "\n", 1), fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(args.out, dpi=150)


def main():
    """Run the step that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("questions", "turns", "answers", "held-out"):
        step = steps.add_parser(name)
        step.add_argument("model")
        step.add_argument("--out", type=Path, required=True)
        step.add_argument("--tasks", type=lambda text: text.split(","), required=True)
        if name == "answers":
            step.add_argument(
                "--lengths",
                type=lambda text: [int(part) for part in text.split(",")],
                required=True,
            )
            step.add_argument("--code", type=int, default=0)
        else:
            step.add_argument("--length", type=int, default=4096)
        step.add_argument("--count", type=int, default=100)
        step.add_argument("--seed", type=int, required=True)
        step.add_argument("--max-new-tokens", type=int, default=48)
        if name in ("turns", "answers"):
            step.add_argument("--texts", type=int, default=0)
    step = steps.add_parser("measure")
    step.add_argument("model")
    step.add_argument("--out", type=Path, required=True)
    step.add_argument("--samples", type=Path, required=True)
    step.add_argument("--recipe", required=True)
    step.add_argument("--state", choices=STATES, required=True)
    step.add_argument("--texts", type=int, default=40)
    step.add_argument("--batch-size", type=int, default=50)
    step.add_argument("--dtype", default="auto")
    step.add_argument("--device", default="cpu")
    step.add_argument("--backend", default="auto")
    for name in ("collect", "draw"):
        step = steps.add_parser(name)
        step.add_argument("parts", type=Path, nargs="+")
        if name == "draw":
            step.add_argument("--out", type=Path, required=True)
            continue
        step.add_argument("--name", required=True)
        step.add_argument("--model", required=True)
        step.add_argument("--trainings", type=Path, required=True)
        step.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    functions = {"questions": write_questions, "turns": write_turns, "held-out": write_held_out}
    functions["answers"] = write_answers
    {**functions, "measure": measure, "collect": collect, "draw": draw}[args.step](args)


if __name__ == "__main__":
    main()
