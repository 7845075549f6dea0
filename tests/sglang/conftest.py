"""SGLang's own venv runs these tests (`make test-sglang`); elsewhere they are skipped."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ON_GPU = os.environ.get("SWAA_TEST_DEVICE") == "cuda"
MISSING = importlib.util.find_spec("sglang") is None

if not MISSING:
    # Of this process, and of those that SGLang starts. A GPU has the packages that need CUDA.
    folders = [str(HERE / "inside"), str(HERE.parents[1])]
    folders += [] if ON_GPU else [str(HERE / "stand_ins")]
    sys.path[:0] = folders
    paths = [*folders, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "0" if ON_GPU else "1")
    os.environ["SGLANG_SWA_EVICTION_INTERVAL"] = "1"  # else nothing is freed in short answers


def pytest_configure(config):
    config.addinivalue_line("markers", "sglang: needs SGLang, in a venv of its own")
    config.addinivalue_line("markers", "xdist_group(name): of pytest-xdist, likewise")
    config.addinivalue_line(
        "markers", "timeout(seconds): of pytest-timeout, where that is installed"
    )


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(str(item.path)).parents:
            item.add_marker(pytest.mark.sglang)
            # SGLang and what it imports warn of their own affairs.
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.timeout(600))
            if "case" in item.fixturenames:  # tests of one engine stay in one process
                item.add_marker(pytest.mark.xdist_group(item.callspec.params["case"]))
            if MISSING:
                item.add_marker(
                    pytest.mark.skip(reason="sglang is not installed (make test-sglang)")
                )


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fresh memory is left alone: SGLang has its own kernels, which need not be deterministic."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a tiny random model of a family, made once."""
    from tests.served import checkpoints

    return checkpoints(tmp_path_factory)
