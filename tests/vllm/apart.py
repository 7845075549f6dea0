"""Runs tests of vLLM each in a process of its own, two at a time.

`python -m tests.vllm.apart WORD...`, where a word is `FILE:NAMES`: the name of a test module,
without `test_`, and an expression as pytest's -k takes it. The processes are forked from one that
has imported vLLM, which takes ten seconds. No test module and no engine is in it: each process
collects its own tests and starts its own engine.
"""

import importlib
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
TOGETHER = 2
KNOWN = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
"""Plugins of pytest that vLLM imports, too."""


def main(words):
    for name in ("pytest", "tests.vllm.conftest", "vllm.entrypoints.llm"):
        importlib.import_module(name)  # conftest first, for the environment that vLLM reads
    failed, running = [], {}

    def end_one():
        process, status = os.wait()
        word = running.pop(process)
        failed.extend([word] if status else [])

    for word in words:
        if len(running) == TOGETHER:
            end_one()
        process = os.fork()
        if process == 0:
            run(word)
        running[process] = word
    while running:
        end_one()
    return "failed: " + ", ".join(failed) if failed else 0


def run(word):
    """Run the tests of a word and end this process with what pytest says."""
    import pytest

    file, names = word.split(":")
    status = 1  # also of what pytest raises; nothing of this process may go on
    try:
        status = pytest.main([str(HERE / f"test_{file}.py"), "-k", names, "-W", KNOWN])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
