"""Processes of one command, forked by a server that has imported everything once.

Each process that starts from nothing spends ten seconds on imports. These have what
`torch.distributed.run` tells its own, and as there the others are ended after one that failed.
"""

import importlib
import multiprocessing
import os
import socket
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PATIENCE = 300
"""Seconds for all of them."""


class Ended(NamedTuple):
    """Exit codes by rank, and what all of them wrote."""

    codes: list[int]
    stdout: str
    stderr: str


def launch(module, words, *, count, folder, **environment):
    """Run ``module.main(words)`` in ``count`` processes on the CPU, in a folder of their own."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.launched_imports"])
    shared = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        # Of the server, too, which does not have this process's path.
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        **environment,
    }
    if count > 1:
        shared |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port()}
    written = [folder / name for name in ("stdout", "stderr")]
    for path in written:
        path.write_text("")
    before = os.environ.copy()
    os.environ.update(shared)
    try:
        processes = [
            server.Process(target=_run, args=(module, words, folder, _own(shared, rank, count)))
            for rank in range(count)
        ]
        for process in processes:
            process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    _end(processes)
    codes = [process.exitcode for process in processes]
    return Ended(codes, *(path.read_text() for path in written))


def _own(shared, rank, count):
    return shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else shared


def _port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def _end(processes):
    left = {process.sentinel: process for process in processes}
    while left:
        ended = wait(left, timeout=PATIENCE)
        failed = [left.pop(sentinel) for sentinel in ended]
        for process in failed:
            process.join()
        if not ended or any(process.exitcode for process in failed):
            for process in left.values():
                process.terminate()
            assert ended, f"still at work after {PATIENCE} seconds"


def _run(module, words, folder, environment):
    os.environ.update(environment)
    os.chdir(folder)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.exit(importlib.import_module(module).main(list(words)))
