"""What does not start, and says why in one line; and what is left alone."""

import json
import subprocess
import sys

import pytest

from swaa.config import SWAAConfig
from tests.sglang.conftest import ON_GPU
from tests.sglang.engine import BACKEND, OPTIONS

CONFIG = {"window": 24, "sink_tokens": 4, "full_layers": [1], "full_decode": [2], "dense_tail": 8}
START = """
import json, sys
import sglang
if __name__ == "__main__":
    engine = sglang.Engine(**json.loads(sys.argv[1]))
    print(engine.generate(input_ids=[1] * 40, sampling_params={"max_new_tokens": 2})["output_ids"])
    engine.shutdown()
"""


@pytest.fixture
def start(checkpoint, monkeypatch, tmp_path):
    """Start an engine in a process of its own; what it wrote, and its exit code."""
    script = tmp_path / "start.py"
    script.write_text(START)

    def start(swaa, inside=None, folder=None, **options):
        monkeypatch.setenv("SWAA_TESTS_INSIDE", json.dumps(inside or {}))
        overrides = json.dumps({} if swaa is None else {"swaa": swaa})
        given = {**OPTIONS, "json_model_override_args": overrides, "log_level": "info", **options}
        given["model_path"] = folder or checkpoint()
        return subprocess.run(
            [sys.executable, str(script), json.dumps(given)],
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    return start


def said(ran):
    return ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"attention_backend": BACKEND.removeprefix("swaa_")}, "swaa: not active: attention runs"),
        ({"radix_cache_backend": None}, "swaa: not active: keys of other phases would be reused"),
        ({"swaa": {**CONFIG, "decode_keys": 32}}, "decode_keys is not served by SGLang yet"),
        ({"swaa": {"windows": 24}}, "unknown keys"),
    ],
    ids=["stock_backend", "stock_cache", "knob", "unknown_knob"],
)
def test_refused(start, given, reason):
    ran = start(**{"swaa": CONFIG, **given})
    assert ran.returncode != 0
    assert reason in said(ran)


@pytest.mark.parametrize("hook", ["ForwardBatch.init_new", "create_memory_pool_configurator"])
def test_a_hook_that_is_not_in_place_ends_the_server(start, hook):
    ran = start(CONFIG, {"undone": hook})
    assert ran.returncode != 0
    assert f"{hook} was replaced" in said(ran)


def test_another_version_ends_the_server_where_swaa_is_asked_for(start, checkpoint):
    ran = start(None, {"version": "0.5.24"}, checkpoint(swaa=CONFIG), attention_backend=None)
    assert ran.returncode != 0
    assert "swaa cannot be applied to this SGLang: SGLang 0.5.24 was not tested" in said(ran)


def test_a_checkpoint_that_carries_its_recipe_needs_no_override(start, checkpoint):
    ran = start(None, folder=checkpoint(swaa=CONFIG))
    assert ran.returncode == 0, said(ran)
    line = next(line for line in said(ran).split("\n") if "swaa adapted" in line)
    assert "swaa adapted 3 of 4 layers (1 full, 1 full decode, 2 sliding): window 24" in line
    kernels = "triton" if ON_GPU else "sdpa"
    assert f"backend {kernels}; KV memory holds 4,096 tokens (full attention" in line
    assert "2 layers keep all keys, 2 layers share" in line


def test_an_engine_that_asks_for_nothing_is_left_alone(start):
    stock = BACKEND.removeprefix("swaa_")
    ran = start(None, attention_backend=stock, radix_cache_backend=None)
    assert ran.returncode == 0, said(ran)
    assert "swaa adapted" not in said(ran)


# Reasons that need no engine ------------------------------------------------------------------


def test_pools_are_sized_for_what_a_prompt_and_requests_need():
    from swaa.integrations.sglang.pool import demand, layers_by_pool

    sizes = {"keeps": 2176, "longest": 131_072, "chunk": 8192, "page": 16, "interval": 128}
    request, prompt = demand(tail=False, **sizes)
    assert request == 2176 + 128 + 32
    assert prompt == 2 * 8192 + 16
    assert demand(tail=True, **sizes).prompt == prompt + 131_072
    plans = SWAAConfig(window=8, full_decode=(2,), full_layers=(0,)).layers(4)
    assert layers_by_pool(plans) == [0, 1, 0, 1]
    assert layers_by_pool(SWAAConfig(window=8, full_decode=True).layers(4)) is None
