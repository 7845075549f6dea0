"""`swaa bench serve` as people run it: vLLM started for each recipe, measured, ended."""

import json
import os
import subprocess
import sys

import pytest

from tests.vllm.test_server import PROCESSES, VLLM

VLLM_FLAGS = VLLM[2:]  # the host is the command's own business


@pytest.mark.slow
def test_recipes_behind_vllm(checkpoint, tmp_path):
    folder, recipe = checkpoint(), tmp_path / "sinks.json"
    recipe.write_text(json.dumps({"window": 24, "sink_tokens": 4, "full_decode": [2]}))
    command = [sys.executable, "-m", "swaa", "bench", "serve", folder, "--json"]
    command += ["--recipes", f"full,{recipe}", "--results", str(tmp_path / "results")]
    command += ["--input-tokens", "300", "--output-tokens", "8", "--requests", "6"]
    command += ["--vocabulary", "97", "--vllm", *VLLM_FLAGS]
    options = {"env": os.environ | PROCESSES, "capture_output": True, "text": True}

    done = subprocess.run(command, timeout=900, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert [result["config"]["setting"] for result in results] == ["full", "sinks"]
    for result in results:
        rows = {row["metric"]: row for row in result["rows"]}
        assert rows["requests"]["finished"] == 6
        assert rows["requests"]["short"] == 0
        # A piece of the stream may hold several tokens.
        assert 6 <= rows["itl_s"]["count"] <= 6 * 7
        assert rows["ttft_s"]["p50"] > 0
        assert rows["server"]["kv_tokens"] > 0
    assert not list((tmp_path / "results").rglob("*.log"))

    again = subprocess.run(command, timeout=300, check=False, **options)
    assert json.loads(again.stdout) == results


@pytest.mark.slow
def test_a_server_that_refuses_says_why(checkpoint, tmp_path):
    command = [sys.executable, "-m", "swaa", "bench", "serve", checkpoint(), "--recipes", "full"]
    command += ["--results", str(tmp_path), "--workload", "smoke"]
    command += ["--vocabulary", "97", "--vllm", "--no-such-flag"]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith("swaa bench serve: the server ended with code 2; its last line: ")
    assert "--no-such-flag" in said
