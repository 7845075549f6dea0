"""SGLang's schedulers and detokenizers, forked from a server that has imported SGLang."""

import contextlib
from multiprocessing import forkserver, resource_tracker

import psutil
import pytest

from tests.forked import Forking

IMPORTED_FIRST = ("sglang.srt.managers.scheduler", "sglang.srt.managers.detokenizer_manager")


@contextlib.contextmanager
def forked_processes():
    """Within it, engines start their processes from the server."""
    from sglang.srt.entrypoints import engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "mp", Forking(*IMPORTED_FIRST))
        yield


@contextlib.contextmanager
def spared_server():
    """Within it, an engine that ends takes its own processes along, and leaves the server."""
    from sglang.srt.entrypoints import engine

    def end(pid, **_):
        spared = {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}
        mine = [p for p in psutil.Process(pid).children(recursive=True) if p.pid not in spared]
        for process in mine:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert not psutil.wait_procs(mine, timeout=60)[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "kill_process_tree", end)
        yield
