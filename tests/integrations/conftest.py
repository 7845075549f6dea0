"""A deprecated name of the cache fails; ``--support-table FILE`` writes the docs' table."""

import logging
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers

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
For each cell a tiny random model of the family ran in float32. Its logits agreed to 1e-5 with those
of a model whose masks are built row by row in plain loops.

"""
NOTES = """
`-`: not run, for the reason in the test. Layers that slide already (Gemma 3) and linear layers
(Qwen3-Next) stay as they are.

Also tested: weights quantised by bitsandbytes (8 and 4 bits) and by GGUF, and layers that
accelerate spreads over devices.
"""
EVERY_TYPE = "test_a_type_equals_the_dense_mask_or_is_refused"
EQUAL = "## Every causal type of Transformers"
TYPES = f"""
{EQUAL}

A tiny random model of each type that Transformers {{version}} knows was tried. These types equal
their own eager attention under a dense mask, in prefill, in decoding and in a left-padded batch:

{{equal}}

## Refused by `adapt`

With the reason. Composites (vision, audio) share the reason of their kind.

| reason | types |
| --- | --- |
{{refused}}

## Not tried

| reason | types |
| --- | --- |
{{skipped}}
"""


@pytest.fixture(autouse=True)
def _compiled_anew():
    """Models share the code that wraps their forward, of which only some versions are compiled."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


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
    page = INTRODUCTION + table + "\n" + NOTES + _every_type(terminalreporter)
    Path(path).write_text(page, encoding="utf-8")


def _every_type(terminalreporter):
    """What the sweep over all types found."""
    equal, refused, skipped = [], {}, {}
    for outcome in ("passed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            match = re.search(rf"::{EVERY_TYPE}\[(.+)\]$", report.nodeid)
            if match is None:
                continue
            reason = dict(report.user_properties).get("refused")
            if outcome == "skipped":
                skipped.setdefault(report.longrepr[2].removeprefix("Skipped: "), []).append(
                    match[1]
                )
            elif reason is not None:
                refused.setdefault(reason.replace("|", "/"), []).append(match[1])
            else:
                equal.append(match[1])
    return TYPES.format(
        version=transformers.__version__,
        equal=textwrap.fill(_names(equal), 100),
        refused=_reasons(refused),
        skipped=_reasons(skipped),
    )


def _names(names):
    return ", ".join(f"`{name}`" for name in sorted(names))


def _reasons(found):
    return "\n".join(f"| {reason} | {_names(names)} |" for reason, names in sorted(found.items()))


def _cell(outcomes):
    if "failed" in outcomes:
        return "fails"
    return "yes" if "passed" in outcomes else "-"
