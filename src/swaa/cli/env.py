"""`swaa env`: versions, devices, and which attention backends can serve here."""

from __future__ import annotations

import argparse
import json
from typing import Any

from swaa.cli.table import format_table

PACKAGES = (
    *("swaa", "torch", "transformers", "triton", "flash-attn-4", "nvidia-cutlass-dsl"),
    *("vllm", "sglang", "trl", "matplotlib"),
)
"""Packages whose versions are shown."""


def register(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "env",
        help="say which versions, devices and backends are here",
        description="Print versions and devices, and for each attention backend whether it can"
        " serve a prompt, a decoding step and training here, or why not.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: text)")


def run(args: argparse.Namespace) -> int:
    """Print the environment."""
    report = describe()
    if args.json:
        print(json.dumps(report))
        return 0
    lines = [(name, version or "not installed") for name, version in report["versions"].items()]
    print(format_table(("package", "version"), lines))
    print(f"\ndevice: {report['device']}\n")
    calls = list(report["auto"])
    rows = [
        (name, *("yes" if reasons[call] is None else "no" for call in calls))
        for name, reasons in report["backends"].items()
    ]
    print(format_table(("backend", *calls), [*rows, ("auto takes", *report["auto"].values())]))
    for name, reasons in report["backends"].items():
        for reason in dict.fromkeys(filter(None, reasons.values())):
            whence = ", ".join(call for call in calls if reasons[call] == reason)
            print(f"\n{name} ({whence}): {reason}")
    return 0


def describe() -> dict[str, Any]:
    """Versions, device, and per backend and kind of call why it cannot be served, or None."""
    import importlib.metadata
    import platform

    import torch

    from swaa.attention import BACKENDS, choose_backend
    from swaa.attention.api import why_not

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpu = torch.cuda.is_available()
    calls = _typical_calls("cuda" if gpu else "cpu")
    return {
        "versions": versions,
        "device": torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU, no GPU",
        "backends": {
            name: {kind: why_not(name, call) for kind, call in calls.items()} for name in BACKENDS
        },
        "auto": {kind: choose_backend(call).name for kind, call in calls.items()},
    }


def _typical_calls(device: str) -> dict[str, Any]:
    """A prompt, a decoding step and a training step of a model with heads of 128 channels."""
    import torch

    from swaa.attention.api import make_call

    def call(rows: int, training: bool = False) -> Any:
        shapes = (1, rows, 4, 128), (1, 4096, 2, 128), (1, 4096, 2, 128)
        q, k, v = (
            torch.empty(shape, dtype=torch.bfloat16, device=device, requires_grad=training)
            for shape in shapes
        )
        return make_call(q, k, v, window=2048, sink_tokens=128)

    return {"prefill": call(4096), "decode": call(1), "training": call(4096, training=True)}
