"""Start ``vllm serve``, and end it unless every worker reports that swaa is active."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from swaa.extras import install_line
from swaa.integrations.launch import PLUGIN, require_plugin, run
from swaa.integrations.vllm.address import find_address
from swaa.integrations.vllm.environment import REPORTS, REQUIRED
from swaa.integrations.vllm.settings import KEY, Settings

GROUP = "vllm.general_plugins"
RAY_COPIES = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
"""vLLM's variable that names the environment variables to pass on to Ray's workers."""


def serve(arguments: Sequence[str], settings: Settings) -> int:
    """Run ``vllm serve`` until it ends; see :func:`check_installed`.

    Args:
        arguments: of ``vllm serve``, the model first.
        settings: what the plugin must do.

    Returns:
        Its exit code, see :func:`swaa.integrations.launch.run`.

    Raises:
        ValueError: for arguments that hold their own configuration, or name an address that is
            taken.
    """
    address = find_address(arguments)
    wanted = settings.to_dict()
    copied = [*filter(None, [os.environ.get(RAY_COPIES)]), REQUIRED, REPORTS]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments]
    command += ["--additional-config", json.dumps({KEY: wanted})]
    environment = {REQUIRED: json.dumps(wanted, sort_keys=True), RAY_COPIES: ",".join(copied)}
    return run(command, address, environment=environment, reports=REPORTS)


def check_installed() -> None:
    """Refuse where vLLM is missing or would not load the plugin.

    Raises:
        ImportError: when vLLM is not installed.
        ValueError: when the plugin is not registered or filtered out.
    """
    require_plugin("vLLM", "vllm", GROUP, install=install_line("vllm"))
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        raise ValueError(f"VLLM_PLUGINS={allowed} keeps swaa out; add {PLUGIN!r} to it")
