"""The long-prompt benchmark but for its engines, which need vLLM."""

import json
import subprocess
import sys

import pytest

from swaa import results
from swaa.benchmark.long_prompt import measure as long_prompt
from swaa.config import SWAAConfig
from swaa.model_shapes import SHAPES

EVENTS = [
    {"event": "ready", "seconds": 100.0, "blocks": 50, "longest_requests": 2.0},
    {"event": "warm", "first": 9.0, "each": 0.9, "usage": 0.25},
    {"event": "timed", "first": 2.5, "each": 0.004},
    {"event": "timed", "first": 2.0, "each": 0.005},
    {"event": "traffic", "requests": 1, "seconds": 4.0, "tokens": 1000},
    {"event": "done"},
]


@pytest.fixture
def settings(tmp_path):
    args = long_prompt.parse([str(tmp_path), "--engines", "stock_window,sliding,full_decode"])
    return long_prompt.settings_of(args, tmp_path)


def test_engines_come_in_the_order_asked_for(settings):
    assert [setting.name for setting in settings] == ["stock_window", "sliding", "full_decode"]
    assert settings[0].swaa is None
    assert settings[2].swaa is not None
    assert settings[2].swaa["full_decode"] is True


@pytest.mark.parametrize("name", long_prompt.HEADS)
def test_half_of_the_heads_keep_every_key(tmp_path, name):
    args = long_prompt.parse([str(tmp_path), "--engines", name, "--requests", "3"])
    (setting,) = long_prompt.settings_of(args, tmp_path)
    plans = SWAAConfig.from_dict(setting.swaa).layers(36, [8] * 36)
    kept = [8 if plan.full_decode else len(plan.decode_heads) for plan in plans]
    assert sum(kept) == 36 * 8 / 2
    assert (len(set(kept)) == 1) == (name == "heads")
    assert setting.requests == 3


def test_native_window_stands_in_the_models_configuration(settings):
    with open(f"{settings[0].model}/config.json") as file:
        native = json.load(file)
    with open(f"{settings[1].model}/config.json") as file:
        plain = json.load(file)
    assert native["sliding_window"] == 2048
    assert set(native["layer_types"]) == {"sliding_attention"}
    assert "sliding_window" not in plain
    assert plain.items() >= SHAPES["qwen3-4b"].items()


def test_row_holds_the_best_timed_pass(settings):
    row = long_prompt.row(settings[1], EVENTS)
    assert row["first_token_seconds"] == 2.0
    assert row["each_token_seconds"] == 0.004
    assert row["live_kv_bytes"] == 0.25 * settings[1].kv_bytes
    tokens = 2 * settings[1].max_tokens
    assert row["kv_tokens_per_gib"] == pytest.approx(tokens / settings[1].kv_bytes * (1 << 30))


@pytest.mark.parametrize("count", range(len(EVENTS)))
def test_interrupted_engines_have_a_row_all_the_same(settings, count):
    rows = [long_prompt.row(settings[0], EVENTS[:count])]
    assert "stock_window" in long_prompt.table(rows)
    saved = long_prompt.result_of(settings, rows, 1.0, tiny=True)
    assert isinstance(saved, results.Result)


def test_unknown_engine():
    command = [sys.executable, "-m", "swaa.benchmark.long_prompt", "out", "--engines", "none"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "unknown engine 'none'; choose from stock, stock_window" in ran.stderr


def test_sglang_says_its_capacity_in_tokens_and_bytes(tmp_path):
    args = long_prompt.parse([str(tmp_path), "--engine", "sglang"])
    settings = long_prompt.settings_of(args, tmp_path)
    assert [setting.name for setting in settings] == [
        *("stock", "full_decode", "sliding", "sliding_quarter"),
    ]
    assert {setting.engine for setting in settings} == {"sglang"}
    ready = {"event": "ready", "seconds": 9.0, "kv_tokens": 3000, "kv_bytes": 3 << 30}
    row = long_prompt.row(settings[0], [ready, *EVENTS[2:]])
    assert row["kv_tokens_per_gib"] == 1000
    assert row["live_kv_bytes"] is None
    assert long_prompt.result_of(settings, [row], 1.0, tiny=True).kind == "sglang"


def test_engines_are_those_that_the_serving_engine_has(tmp_path, capsys):
    args = long_prompt.parse([str(tmp_path), "--engine", "sglang", "--engines", "stock_fa3"])
    assert long_prompt.settings_of(args, tmp_path)[0].attention == "fa3"
    for engine, name in (("vllm", "stock_fa3"), ("sglang", "stock_window")):
        with pytest.raises(SystemExit):
            long_prompt.parse([str(tmp_path), "--engine", engine, "--engines", name])
        assert f"unknown engine '{name}'" in capsys.readouterr().err
