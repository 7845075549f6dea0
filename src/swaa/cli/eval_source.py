"""Where the answers of `swaa eval` come from: a model here, a copy in each process, or a server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from swaa.cli.endpoints import endpoint_from, refuse_unused
from swaa.cli.options import load_from
from swaa.config import SWAAConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from swaa.evaluation.comparison import Source
    from swaa.evaluation.prompt import Prompt
    from swaa.evaluation.sources import LocalModel

_LOCAL = {
    "batch_size": 1,
    "chunk": None,
    "backend": "auto",
    "dtype": "auto",
    "device": "auto",
    "device_map": None,
}
"""Flags that only a model loaded here uses, with their defaults."""


@contextmanager
def open_source(
    args: argparse.Namespace, settings: Sequence[tuple[str, SWAAConfig]]
) -> Iterator[tuple[Source, Prompt]]:
    """Where engines come from, and how prompts are put to them."""
    refuse_unused(args, local=dict(_LOCAL))
    if args.endpoint is None:
        with _local_source(args) as found:
            yield found
        return
    from swaa.evaluation.sources import ServedModel, load_tokenizer

    if len(settings) > 1:
        raise ValueError("a server runs one recipe; name it alone: --recipes R")
    endpoint = endpoint_from(args)
    tokenizer = load_tokenizer(args.model, trust_remote_code=args.trust_remote_code)
    served = ServedModel(endpoint, api=args.api, concurrency=args.concurrency, tokenizer=tokenizer)
    yield served, _prompt(args, tokenizer)


@contextmanager
def _local_source(args: argparse.Namespace) -> Iterator[tuple[Source, Prompt]]:
    from swaa.processes import process_count

    if process_count() == 1:
        local = _load(args, args.device)
        yield local, _prompt(args, local.tokenizer)
        return
    from swaa.evaluation.replicas import lead

    with lead(lambda device: _load(args, device), device=args.device) as model:
        yield model, _prompt(args, model.local.tokenizer)


def follow(args: argparse.Namespace) -> int:
    """Run in the processes of `accelerate launch` other than the first, which reports errors."""
    from swaa.evaluation import replicas

    try:
        check_processes(args)
    except (ValueError, ImportError):
        return 0
    if args.paper_table is None:
        replicas.follow(lambda device: _load(args, device), device=args.device)
    return 0


def check_processes(args: argparse.Namespace) -> None:
    """Refuse what several processes cannot do together.

    Raises:
        ValueError: naming the flag.
        ImportError: when accelerate is missing.
    """
    from swaa.processes import process_count

    if process_count() == 1:
        return
    from swaa.models import require_accelerate

    require_accelerate("evaluating by several processes")
    if args.endpoint is not None:
        raise ValueError("--endpoint is asked by one process; start it without accelerate launch")
    if args.device_map is not None or args.device not in ("auto", "cpu"):
        flag = "--device" if args.device_map is None else "--device-map"
        raise ValueError(
            f"{flag} goes with one process, and each of several has its own GPU; leave it out, or"
            " start without accelerate launch"
        )
    sharding = [name for name in ("FSDP", "DEEPSPEED") if _is_set(f"ACCELERATE_USE_{name}")]
    if sharding:
        raise ValueError(
            f"accelerate launch was told to use {sharding[0]}, which splits what each process must"
            " hold whole; use --multi_gpu, or --device-map for a model that one GPU cannot hold"
        )


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "yes", "1")


def _load(args: argparse.Namespace, device: str) -> LocalModel:
    from swaa.evaluation.sources import LocalModel

    loaded = load_from(args, device=device, device_map=args.device_map)
    return LocalModel(loaded, args.model, backend=args.backend, chunk=args.chunk)


def _prompt(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    from swaa.evaluation.prompt import Prompt

    return Prompt(
        tokenizer=tokenizer,
        chat=False if args.no_chat else None,
        thinking=args.thinking,
        cot=args.cot,
        prefix=not args.no_answer_prefix and args.api != "chat",
    )
