"""A deprecated name of the cache fails; ``--support-table FILE`` writes the docs' table."""

import logging
import re
from pathlib import Path

import pytest

MODES = {
    "test_left_padded_batch": "padded batch",
    "test_chunked_prefill_with_a_last_chunk_of_one_token": "chunked prefill",
    "test_prompt_lookup_decoding": "assisted",
    "test_beam_search": "beams",
    "test_several_sequences_per_prompt": "several answers",
    "test_static_cache": "static cache",
    "test_prompt_shorter_than_the_window": "short prompt",
    "test_second_turn_with_the_kept_cache": "second turn",
    "test_restore_leaves_no_trace": "restore",
}
INTRODUCTION = """# Supported models

Written by `make support-table` from the tests in `tests/integrations`; do not edit.
Each cell ran on a tiny random model of the family, float32, and its logits agreed to 1e-5 with a
model whose masks are built row by row in plain loops.

"""
NOTES = """
`-`: not run, for the reason in the test. Layers that slide already (Gemma 3) and linear layers
(Qwen3-Next) stay as they are.

Also tested: weights quantised by bitsandbytes (8 and 4 bits) and GGUF, layers spread by accelerate.

Refused, with the reason in the error: learned sink logits (gpt-oss), soft-capped scores (Gemma 2),
latent attention (DeepSeek), sparse indexers, chunked attention, composite (vision, audio) models,
encoder-decoders, models that slide in every layer, models outside Transformers' AttentionInterface.
"""


@pytest.fixture(autouse=True)
def _nothing_deprecated():
    """The cache's old name is deprecated by log lines too, which no filter of warnings sees."""
    found = []

    class Handler(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    logger, handler = logging.getLogger("transformers"), Handler(logging.WARNING)
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert [line for line in found if "past_key_values" in line and "deprecated" in line] == []


def pytest_terminal_summary(terminalreporter, config):
    path = config.getoption("--support-table")
    if path is None:
        return
    cells = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            match = re.search(r"::(\w+)\[(\w+?)(?:-\w+)?\]$", report.nodeid)
            if match and match[1] in MODES:
                cells.setdefault(match[2], {}).setdefault(MODES[match[1]], set()).add(outcome)
    header = ["family", *MODES.values()]
    lines = [header, ["---"] * len(header)]
    for family in sorted(cells):
        found = [cells[family].get(mode, set()) for mode in MODES.values()]
        lines.append([f"`{family}`", *(_cell(outcomes) for outcomes in found)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    Path(path).write_text(INTRODUCTION + table + "\n" + NOTES, encoding="utf-8")


def _cell(outcomes):
    if "failed" in outcomes:
        return "fails"
    return "yes" if "passed" in outcomes else "-"
