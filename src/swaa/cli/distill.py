"""`swaa distill`: answers of the full-attention model, filtered, to train on."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from swaa.cli.endpoints import add_endpoint_options, endpoint_from, judge_from, refuse_unused
from swaa.cli.numbers import counted
from swaa.cli.options import OUTPUT, add_flags, add_model_options, load_from, made_from

if TYPE_CHECKING:
    from swaa.evaluation.engines import Engine, Sampling
    from swaa.evaluation.prompt import Prompt
    from swaa.evaluation.sample import Sample
    from swaa.training.distill import Distilled

_EPILOG = """\
Each line of the questions is an object with context, question and answers, as the task jsonl of
`swaa eval` reads it; an answer is right if it contains one of theirs, or if the judge says so. Run
the same command again to resume an interrupted run. Every sampled answer is kept next to OUT: for
--out sft.jsonl in sft.answers.jsonl.
"""

_FLAGS = """
answers:
--answers N=4  drawn for each question
--keep N=1  right ones kept of each question, the shortest
--temperature X=1.0  of the draws
--seed N=0  of the draws
--max-new-tokens N  longest answer, in tokens (default: the question's own, or 128)
--max-length N  leave questions out whose prompts have more tokens (default: no limit)
--thinking  the model thinks first: up to 10,000 tokens, what follows </think> is filtered,
    thoughts are kept
a model loaded here:
--batch-size N=1  prompts answered at once
"""


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "distill",
        help="let the full-attention model answer questions, and keep what is right",
        description="Let the full-attention model answer questions several times, and keep the"
        " shortest right answers as conversations that `swaa train` reads.",
        epilog=_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="folder, hub name, GGUF file, or smollm2")
    parser.add_argument("--data", required=True, metavar="FILE", help="questions: .jsonl and so on")
    parser.add_argument(
        *OUTPUT,
        "--out",
        dest="out",
        required=True,
        metavar="OUT",
        help="chat-format .jsonl to write",
    )
    add_flags(parser, _FLAGS)
    add_model_options(parser)
    add_endpoint_options(parser)
    add_flags(parser, "--json  print JSON (default: text)")


def run(args: argparse.Namespace) -> int:
    """Draw what is not drawn yet, filter, write, and print how many answers were kept."""
    # What needs no model is checked before minutes are spent on loading one.
    local = {"batch_size": 1, "dtype": "auto", "device": "auto"}
    refuse_unused(args, local=local)

    from swaa.cli.progress import ProgressBar
    from swaa.evaluation.engines import Sampling
    from swaa.evaluation.tasks.jsonl import OwnQuestions
    from swaa.evaluation.tasks.rows import DataFile
    from swaa.training.distill import DistillSettings, check_out, distill

    settings, sampling = made_from(args, DistillSettings), made_from(args, Sampling)
    judge = judge_from(args)
    task = OwnQuestions(DataFile.find("distill --data", args.data))
    check_out(args.out, task.file.path)
    engine, prompt, name = _engine(args, sampling)
    questions = task.samples(prompt, length=args.max_length, count=None, seed=0)
    if not questions:
        most = "" if args.max_length is None else f" of at most {args.max_length} tokens"
        raise ValueError(f"{args.data} holds no question{most}")
    draws = {"model": name, "engine": engine.describe(), **dataclasses.asdict(sampling)}
    with ProgressBar(len(questions) * settings.answers, "drawing answers") as bar:
        done = distill(
            [_asked(question) for question in questions],
            task,
            prompt,
            engine,
            args.out,
            settings,
            draws=draws,
            judge=judge,
            progress=bar.update,
        )
    _print(args, done)
    return 0


def _engine(args: argparse.Namespace, sampling: Sampling) -> tuple[Engine, Prompt, str]:
    """The engine that draws, how it is asked, and the model's name."""
    from swaa.config import SWAAConfig
    from swaa.evaluation.engines.openai import OpenAIEngine
    from swaa.evaluation.engines.transformers import TransformersEngine
    from swaa.evaluation.prompt import Prompt
    from swaa.evaluation.sources import load_tokenizer

    options: dict[str, Any] = {"thinking": args.thinking, "prefix": False}
    if args.endpoint is not None:
        endpoint = endpoint_from(args)
        tokenizer = load_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
        engine = OpenAIEngine(
            endpoint,
            api=args.api,
            concurrency=args.concurrency,
            sampling=sampling,
            tokenizer=tokenizer,
        )
        return engine, Prompt(tokenizer=tokenizer, **options), endpoint.model
    loaded = load_from(args)
    full = SWAAConfig(window=None)
    engine = TransformersEngine(loaded, full, sampling=sampling)
    return engine, Prompt(tokenizer=loaded.tokenizer, **options), loaded.name


def _asked(question: Sample) -> Sample:
    """The question, together with what a judge is told about it."""
    return dataclasses.replace(question, tags={**question.tags, "asked": question.question})


def _print(args: argparse.Namespace, done: Distilled) -> None:
    if args.json:
        print(json.dumps({**dataclasses.asdict(done), "path": str(done.path)}, indent=2))
        return
    print(
        f"{counted(done.questions, 'question')}, {counted(done.answers, 'answer')},"
        f" {done.right} right; {done.kept} kept,"
        f" {counted(done.unanswered, 'question')} without a right answer"
    )
    if done.unjudged:
        print(f"{done.unjudged} verdicts of the judge could not be read; they count as wrong.")
    print(f"conversations: {done.path}")
