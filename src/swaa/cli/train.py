"""`swaa train`: a LoRA of q, k and v, trained under the mask it will be served with."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from swaa.cli.numbers import counted
from swaa.cli.options import (
    OUTPUT,
    add_backend_option,
    add_config_options,
    add_flags,
    add_model_options,
    config_from,
    made_from,
)

if TYPE_CHECKING:
    import torch

    from swaa.models import LoadedModel
    from swaa.training.run import Training
    from swaa.training.settings import TrainingSettings

DEFAULT_RECIPE = "balanced"
"""The recipe to train under: `selected` has little to repair, and takes longer."""

_EPILOG = """\
DATA is chat-format JSONL, as `swaa distill` writes it. On several GPUs:
`accelerate launch --num_processes 8 -m swaa train ...` (DDP), and with `--use_fsdp --fsdp_version 2
--fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP` (FSDP2). OUT holds adapter/, merged/, loss.jsonl,
loss.png and training.json. See docs/how-to/train.md.
"""


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "train",
        help="train a LoRA under a recipe's mask",
        description="Train a LoRA of q, k and v under the mask it will be served with: prompt rows"
        " slide, answer rows follow the recipe's full decode, token by token.",
        epilog=_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="folder, hub name, GGUF file, or smollm2")
    parser.add_argument("--data", required=True, metavar="FILE", help="chat-format JSONL")
    parser.add_argument(
        *OUTPUT, "--out", dest="out", required=True, metavar="OUT", help="new or empty folder"
    )
    add_flags(
        parser,
        """
        --skip-bad  leave lines out that cannot be trained on, and say which (default: an error)
        --resume  go on from OUT's last checkpoint, or merge what is trained but not merged
        """,
    )
    add_config_options(parser, default=DEFAULT_RECIPE)
    _add_training_options(parser)
    add_model_options(parser, auto="float32 on a CPU and bfloat16 elsewhere")
    add_backend_option(parser, names="triton, sdpa or reference")
    add_flags(parser, "--json  print JSON (default: text)")


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    from swaa.training.settings import OBJECTIVES, TRACKERS, TrainingSettings

    default = TrainingSettings()
    given = {name: "" if value is None else value for name, value in vars(default).items()}
    table = """
        training: defaults are the paper's where it states them
        --objective {objectives}={objective}  likelihood of the answers, distance from the
            full-attention model's distributions, or their sum
        --learning-rate X={learning_rate}  highest learning rate
        --schedule cosine|linear|constant={schedule}  how it falls
        --warmup X={warmup}  share of the steps in which it rises
        --epochs X={epochs}  passes over the data
        --max-steps N={max_steps}  steps at most (default: none)
        --batch-size N={batch_size}  conversations of a forward pass and process
        --accumulate N={accumulate}  forward passes of a step
        --max-length N={max_length}  most tokens of a conversation, or of a pack
        --packing  put several conversations into a row, apart from each other
        --group-by-length  conversations of similar lengths together
        --no-checkpointing  keep activations instead of computing them again (default: compute
            again)
        --clip X={clip}  largest norm of the gradients
        --seed N={seed}  of adapter, order and dropout
        --save-every N={save_every}  steps between checkpoints to resume from (default: none)
        --tracker {trackers}={tracker}  also send the curve there

        adapter:
        --rank N={rank}  of the LoRA
        --alpha N={alpha}  its output is scaled by alpha / rank
        --dropout X={dropout}  of its input while training
        --targets M,M={targets}  modules that get one
        --adapter-always  keep it on for prompts that fit the window, where the model needs none
            (default: off there)
        --no-merge  write the adapter alone (default: merged too)
        """
    names = {"objectives": "|".join(OBJECTIVES), "trackers": "|".join(TRACKERS)}
    add_flags(parser, table.format(**given | names | {"targets": ",".join(default.targets)}))


def run(args: argparse.Namespace) -> int:
    """Train, and print the result."""
    # TRL and PEFT use a name that Transformers 5.17 has and 5.23 has renamed.
    renamed = "`(is_)?gradient_checkpointing` is deprecated"
    warnings.filterwarnings("ignore", message=renamed, category=FutureWarning)
    # What needs no model is checked before minutes are spent on loading one.
    config, settings = config_from(args, default=DEFAULT_RECIPE), _settings(args)
    _require_packages(settings.tracker)

    from swaa.models import load_model
    from swaa.processes import is_first
    from swaa.training.run import check, merge, train

    device = _device(args.device)
    dtype = _dtype(args.dtype, device)
    checked = {"resume": args.resume, "skip_bad": args.skip_bad}
    left = check(
        args.model, config, args.data, args.out, settings, **checked, merges=not args.no_merge
    )

    def load(dtype: torch.dtype, where: str) -> LoadedModel:
        trust = args.trust_remote_code
        return load_model(args.model, dtype=dtype, device=where, trust_remote_code=trust)

    def reload() -> LoadedModel:
        return load(_dtype("float32", "cpu"), "cpu")

    if left == "merging":
        done = merge(args.out, config, reload, dtype=dtype)
    else:
        with _progress() as report:
            done = train(
                load(dtype, device),
                config,
                args.data,
                args.out,
                settings,
                name=args.model,
                reload=None if args.no_merge else reload,
                backend=args.backend,
                **checked,
                adapter_always=args.adapter_always,
                progress=report,
            )
    if is_first():
        _print(args, done)
    return 0


def _settings(args: argparse.Namespace) -> TrainingSettings:
    from swaa.training.settings import TrainingSettings

    return made_from(
        args,
        TrainingSettings,
        targets=tuple(name.strip() for name in args.targets.split(",")),
        checkpointing=not args.no_checkpointing,
    )


def _require_packages(tracker: str) -> None:
    import importlib.util

    from swaa.extras import install_line

    for name in ("trl", "peft"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"training needs {name}; run: {install_line('train')}")
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise ImportError(f"--tracker {tracker} needs {tracker}; run: pip install {tracker}")


def _device(asked: str) -> str:
    """Each process of `accelerate launch` has its own GPU; FSDP shards from the CPU."""
    rank = os.environ.get("LOCAL_RANK")
    if asked != "auto" or rank is None:
        return asked
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return "cpu" if sharded or _computes_on_cpu("auto") else f"cuda:{rank}"


def _computes_on_cpu(device: str) -> bool:
    import torch

    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "yes", "1")
    alone = "LOCAL_RANK" not in os.environ  # under FSDP a model begins on the CPU only
    return asked_for_cpu or not torch.cuda.is_available() or (device == "cpu" and alone)


def _dtype(asked: str, device: str) -> torch.dtype:
    """The dtype of weights and computation."""
    from swaa.models import DTYPES

    if asked == "auto":
        asked = "float32" if _computes_on_cpu(device) else "bfloat16"
    if asked not in DTYPES:
        raise ValueError(f"--dtype {asked}: expected auto, {', '.join(DTYPES)}")
    return DTYPES[asked]


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    from swaa.cli.progress import ProgressBar

    with ProgressBar(1.0, "training") as bar:

        def report(share: float, logs: Mapping[str, Any]) -> None:
            bar.update(share, f"loss {float(logs['loss']):.3f}")

        yield report


def _print(args: argparse.Namespace, done: Training) -> None:
    first, last = (done.rows[place] for place in (0, -1))
    values = {
        "adapter": str(done.adapter),
        "merged": None if done.merged is None else str(done.merged),
        "plot": None if done.plot is None else str(done.plot),
        "examples": done.examples,
        "skipped": list(done.skipped),
        "steps": last["step"],
        "seconds": None if done.seconds is None else round(done.seconds, 1),
        "first_loss": first["loss"],
        "last_loss": last["loss"],
    }
    if args.json:
        print(json.dumps(values, indent=2))
        return
    for reason in done.skipped:
        print(f"skipped {reason}")
    print(done.summary)
    over = "" if done.examples is None else f" over {counted(done.examples, 'conversation')}"
    took = "" if done.seconds is None else f" in {done.seconds:.0f} s"
    print(
        f"{counted(last['step'], 'step')}{over}{took}: loss {first['loss']:.3f} at first,"
        f" {last['loss']:.3f} at last"
    )
    print(f"adapter: {done.adapter}")
    if done.merged is not None:
        print(f"merged:  {done.merged} (swaa.adapt(model) and swaa serve need no flag)")
    if done.plot is None:
        from swaa.extras import install_line

        print(f"no picture of the curve: run {install_line('plot')}")
