"""What the user asked of a vLLM engine: read once, written back in one form for all workers."""

from __future__ import annotations

from typing import Any

from swaa.integrations.settings import KEY, Settings, carried_by, parse, read, refuse_misplaced
from swaa.integrations.vllm.drafts import served_model

__all__ = ["KEY", "Settings", "carried_by", "find", "parse", "write_back"]


def find(vllm_config: Any) -> Settings | None:
    """The settings of an engine: its ``additional_config``, else its checkpoint's, else None.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a configuration that cannot be read, or a misspelt or misplaced swaa key.
    """
    additional = vllm_config.additional_config
    asked = additional if isinstance(additional, dict) else {}
    refuse_misplaced("additional_config", asked)
    if KEY in asked:
        return read("additional_config", asked[KEY])
    carried = carried_by(served_model(vllm_config))
    return None if carried is None else read("the checkpoint's config.json", carried)


def write_back(vllm_config: Any, settings: Settings) -> None:
    """Store the resolved settings where workers on other machines find them without a file."""
    additional = vllm_config.additional_config
    base = additional if isinstance(additional, dict) else {}
    vllm_config.additional_config = {**base, KEY: settings.to_dict()}
