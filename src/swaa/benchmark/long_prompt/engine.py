"""One engine of the long-prompt benchmark: start, wait for its turn, answer one long prompt.

Runs in its own process, ``python -m swaa.benchmark.long_prompt.engine SETTING FOLDER``. What it
measures goes to ``FOLDER/<name>.jsonl``, one line per event, as it happens.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

WAIT_SECONDS = 0.2
ENGINES = {
    "vllm": "swaa.benchmark.long_prompt.vllm_engine",
    "sglang": "swaa.benchmark.long_prompt.sglang_engine",
}
"""Modules with ``start``, ``memory``, ``answer`` and ``traffic`` of each serving engine."""


def main(setting: dict[str, Any], folder: Path) -> None:
    """Serve a setting (see :class:`swaa.benchmark.long_prompt.measure.Setting`)."""
    # When ended early, it still ends its own engine processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    report = _Report(folder / f"{setting['name']}.jsonl")
    begin = time.perf_counter()
    served = importlib.import_module(ENGINES[setting["engine"]])
    llm = served.start(setting)
    report("ready", seconds=time.perf_counter() - begin, **served.memory(llm))
    while not (folder / f"{setting['name']}.go").exists():
        time.sleep(WAIT_SECONDS)
    prompt = setting["prompt_tokens"]
    # The first pass compiles and loads what only long prompts need, and is not timed.
    report("warm", **served.answer(llm, 0, prompt, setting["answer_tokens"], watch_memory=True))
    for number in range(setting["repeats"]):
        report("timed", **served.answer(llm, 1 + number, prompt, setting["answer_tokens"]))
    if setting["requests"]:
        report("traffic", **served.traffic(llm, setting))
    report("done")


class _Report:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: str, **values: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
