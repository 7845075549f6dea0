"""vLLM's own venv runs these tests (`make test-vllm`); elsewhere they are skipped."""

import importlib.util
import os
import sys

import pytest

from tests.interpreter import hasten

HERE = os.path.dirname(__file__)
ON_GPU = os.environ.get("SWAA_TEST_DEVICE") == "cuda"
MISSING = importlib.util.find_spec("vllm") is None

if not MISSING:
    # Read by vLLM when first imported. One process, so that tests can look into the scheduler.
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",  # else all test processes share one core
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="WARNING",
        HF_HUB_OFFLINE="1",
    )


def _import_from(folder):
    """Here, and in processes that vLLM starts."""
    sys.path.insert(0, folder)
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


if not MISSING and importlib.util.find_spec("torchvision") is None:
    _import_from(os.path.join(HERE, "stand_ins"))
if os.environ.get("SWAA_TEST_RUNNER") == "v2" and not MISSING and not ON_GPU:
    os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1")
    importlib.import_module("tests.vllm.interpreted.sitecustomize")
    _import_from(os.path.join(HERE, "interpreted"))
if os.environ.get("TRITON_INTERPRET") == "1" and not MISSING:
    hasten(importlib.import_module("triton.runtime.interpreter"))


def pytest_configure(config):
    config.addinivalue_line("markers", "vllm: needs vLLM, in a venv of its own")
    config.addinivalue_line("markers", "xdist_group(name): of pytest-xdist, likewise")
    config.addinivalue_line(
        "markers", "timeout(seconds): of pytest-timeout, where that is installed"
    )


def pytest_collection_modifyitems(items):
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.vllm)
            # vLLM and what it imports warn of their own affairs.
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.timeout(900))
            if "case" in item.fixturenames:  # tests of one engine stay in one process
                item.add_marker(pytest.mark.xdist_group(item.callspec.params["case"]))
            if MISSING:
                item.add_marker(pytest.mark.skip(reason="vllm is not installed (make test-vllm)"))


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fresh memory is left alone: vLLM has its own kernels, which need not be deterministic."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a tiny random model of a family, made once."""
    from tests.served import checkpoints

    return checkpoints(tmp_path_factory)


@pytest.fixture
def olmo2_restored():
    """Undoes, after the test, what vLLM's Transformers backend does to a class of Transformers.

    It wraps the class for compilation; outside an engine no model of it can be built then.
    """
    from transformers.models.olmo2.modeling_olmo2 import Olmo2Model

    bases, own = Olmo2Model.__bases__, dict(vars(Olmo2Model))
    yield
    Olmo2Model.__bases__ = bases
    for name in set(vars(Olmo2Model)) - set(own):
        delattr(Olmo2Model, name)
    for name, value in own.items():
        if vars(Olmo2Model)[name] is not value:
            setattr(Olmo2Model, name, value)


@pytest.fixture
def engine(case):
    """The engine of the module's ``case``, with an empty prefix cache."""
    case[0].forget()
    return case[0]


@pytest.fixture
def judge(case):
    """The judge of the module's ``case``."""
    return case[1]
