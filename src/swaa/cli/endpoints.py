"""Flags that name OpenAI-compatible servers, shared by the verbs that ask one."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from swaa.cli.options import add_flags, flag_of

if TYPE_CHECKING:
    from swaa.evaluation.judge import Judge
    from swaa.http.endpoint import Endpoint


def add_endpoint_options(parser: argparse.ArgumentParser, *, note: str = "") -> None:
    """Add the flags of the server that answers and of the one that judges.

    Args:
        parser: of a verb.
        note: an addition to the help of ``--endpoint``.
    """
    group = parser.add_argument_group(
        "served models", "keys are read from the environment, never from the command line"
    )
    add_flags(
        group,
        f"""
        --endpoint URL  OpenAI-compatible server that answers, such as
            http://127.0.0.1:8000/v1{note} (default: the model is loaded here)
        --served-model M  what that server calls it (default: MODEL)
        --api completions|chat=completions  send whole prompts as token ids, or leave the template
            to the server
        --concurrency N=8  prompts under way at once, at each server
        --timeout S=600.0  longest wait for a piece of an answer (seconds, default: %(default)s)
        --key-variable V=OPENAI_API_KEY  environment variable with the server's key
        --judge-endpoint URL  server of the judge of free answers (no default)
        --judge-model M  what that server calls it (no default)
        --judge-key-variable V=JUDGE_API_KEY  environment variable with that server's key
        """,
    )
    add_key_over_http(group)


def add_key_over_http(parser: Any) -> None:
    """Add ``--key-over-http`` to a verb that asks a server, or to a group of its flags."""
    text = "let keys go to other machines over plain HTTP (default: refused)"
    add_flags(parser, f"--key-over-http  {text}")


def endpoint_from(args: argparse.Namespace) -> Endpoint:
    """The server that answers."""
    return _endpoint(args, args.endpoint, args.served_model or args.model, args.key_variable)


def judge_from(args: argparse.Namespace) -> Judge | None:
    """The server that judges; ``None``: none was given.

    Raises:
        ValueError: when only one of its two flags is given.
    """
    url, model = args.judge_endpoint, args.judge_model
    if not url and not model:
        return None
    if not url or not model:
        raise ValueError("--judge-endpoint and --judge-model go together; give both")
    from swaa.evaluation.judge import Judge

    endpoint = _endpoint(args, url, model, args.judge_key_variable)
    return Judge(endpoint=endpoint, concurrency=args.concurrency)


def _endpoint(args: argparse.Namespace, url: str, model: str, variable: str) -> Endpoint:
    from swaa.http.endpoint import Endpoint

    return Endpoint(
        url=url,
        model=model,
        key=os.environ.get(variable),
        key_over_http=args.key_over_http,
        timeout_s=args.timeout,
    )


def refuse_unused(args: argparse.Namespace, *, local: dict[str, object]) -> None:
    """Refuse flags that would do nothing.

    Args:
        args: parsed arguments.
        local: flags that only a model loaded here uses, with their defaults.

    Raises:
        ValueError: naming the flag.
    """
    served: dict[str, object] = {
        "served_model": None,
        "api": "completions",
        "key_variable": "OPENAI_API_KEY",
    }
    if not args.judge_endpoint:  # a judge is also a server
        served |= {"concurrency": 8, "timeout": 600.0, "key_over_http": False}
    unused, where = (served, "without") if args.endpoint is None else (local, "with")
    for name, default in unused.items():
        if getattr(args, name) != default:
            raise ValueError(f"{flag_of(name)} does nothing {where} --endpoint; leave it out")
