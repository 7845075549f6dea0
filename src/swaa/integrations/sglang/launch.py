"""Start ``sglang serve``, and end it unless every worker reports that swaa is active."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from swaa.integrations.launch import PLUGIN, require_plugin, run
from swaa.integrations.settings import KEY, Settings, refuse_heads
from swaa.integrations.sglang.address import find_address, read_flags
from swaa.integrations.sglang.environment import REPORTS, REQUIRED

GROUP = "sglang.srt.plugins"
INSTALL = "pip install sglang==0.5.23"


def serve(arguments: Sequence[str], settings: Settings) -> int:
    """Run ``sglang serve`` until it ends; see :func:`check_installed`.

    Args:
        arguments: of ``sglang serve``, the model first.
        settings: what the plugin must do.

    Returns:
        Its exit code, see :func:`swaa.integrations.launch.run`.

    Raises:
        ValueError: for arguments that hold their own configuration, or name an address that is
            taken; for a configuration that names KV heads.
    """
    refuse_heads(settings.config, "SGLang")
    address = find_address(arguments)
    wanted = settings.to_dict()
    command = [sys.executable, "-c", "from sglang.cli.main import main; main()"]
    command += ["serve", *arguments]
    command += [*backend_flags(arguments), "--radix-cache-backend", "swaa"]
    command += ["--json-model-override-args", json.dumps({KEY: wanted})]
    required = {REQUIRED: json.dumps(wanted, sort_keys=True)}
    return run(command, address, environment=required, reports=REPORTS)


def backend_flags(arguments: Sequence[str]) -> list[str]:
    """Flags for our attention backend, where the arguments name none.

    On GPUs also the flag by which SGLang makes graphs of decode batches only.
    """
    given = read_flags(arguments)
    on_cpu = given.get("device") == "cpu"
    flags = []
    if not any(name.endswith("attention-backend") for name in given):
        flags += ["--attention-backend", "swaa_torch_native" if on_cpu else "swaa_triton"]
    if not on_cpu and "cuda-graph-backend-prefill" not in given:
        flags += ["--cuda-graph-backend-prefill", "disabled"]
    return flags


def check_installed() -> None:
    """Refuse where SGLang is missing or would not load the plugin.

    Raises:
        ImportError: when SGLang is not installed.
        ValueError: when the plugin is not registered or filtered out.
    """
    require_plugin("SGLang", "sglang", GROUP, install=INSTALL)
    allowed = os.environ.get("SGLANG_PLUGINS")
    if allowed and PLUGIN not in [name.strip() for name in allowed.split(",")]:
        raise ValueError(f"SGLANG_PLUGINS={allowed} keeps swaa out; add {PLUGIN!r} to it")
