"""What starts and what refuses to: carriers of the configuration, hooks broken on purpose."""

import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from swaa.config import SWAAConfig
from swaa.integrations.vllm.environment import REQUIRED
from swaa.integrations.vllm.settings import parse
from tests.vllm.engine import Engine, Judge, prompts_of
from tests.vllm.test_features import CONFIGS

KNOBS = {"window": 24, "sink_tokens": 4, "full_decode": True, "dense_tail": 8}
CONFIG = SWAAConfig(**KNOBS)
FP4_CACHE = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}
FP4_CACHE["ignore"] = []


def attempt(folder, swaa=None, error=Exception, **options):
    """Start an engine that is expected to refuse; the chain of reasons as text."""
    with pytest.raises(error) as caught:  # any: vLLM wraps what we raise
        Engine(folder, swaa, **options)
    return str(caught.value)


def test_entry_point_imports_the_standard_library_only():
    code = "import sys, swaa.integrations.vllm.plugin as p; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ran.stdout.split()}
    assert not loaded & {"torch", "vllm", "transformers", "triton", "numpy"}


@pytest.mark.parametrize(
    "carried",
    [{"recipe": "naive", **KNOBS}, "file", "checkpoint"],
    ids=["recipe_and_knobs", "file", "checkpoint"],
)
def test_carriers_of_the_configuration(checkpoint, tmp_path, carried):
    """Knobs alone, and knobs as a recipe, carry the other tests' configurations."""
    folder = checkpoint()
    if carried == "file":
        CONFIG.save(tmp_path / "recipe.json")
        carried = {"recipe": str(tmp_path / "recipe.json")}
    if carried == "checkpoint":
        folder, carried = checkpoint(swaa=CONFIG.to_dict()), None
    (prompt,) = prompts_of(90)
    with Engine(folder, carried) as engine:
        answer = engine.answers([prompt], max_tokens=6)[0]
    Judge(folder, CONFIG).check(prompt, answer)


def test_unconfigured_engine_is_left_alone(checkpoint):
    (prompt,) = prompts_of(90)
    with Engine(checkpoint()) as engine:
        answer = engine.answers([prompt], max_tokens=6)[0]
        specs = [m.kv_cache_spec for m in engine.manager.coordinator.single_type_managers]
    assert [type(spec).__name__ for spec in specs] == ["FullAttentionSpec"]
    Judge(checkpoint(), SWAAConfig(window=4096)).check(prompt, answer)


@pytest.mark.parametrize(
    ("swaa", "reason"),
    [
        ("unheard-of", "unknown recipe 'unheard-of'"),
        ({"recipe": "naive", "windows": 3}, "unknown keys windows"),
        ({"window": 0}, "window is 0"),
        (7, "expected a recipe name"),
        ({**KNOBS, "publish_generated": 1}, "expected true or false"),
        ({**KNOBS, "full_layers": [4, 9]}, "full_layers holds 4, 9; the model's last layer is 3"),
    ],
)
def test_bad_configuration(checkpoint, swaa, reason):
    said = attempt(checkpoint(), swaa)
    assert reason in said
    assert "swaa" in said


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"swa": KNOBS}, "additional_config holds 'swa'; did you mean 'swaa'?"),
        ({"recipe": "fast"}, "holds 'recipe' at its top, where nobody reads it; put it under 'sw"),
    ],
)
def test_keys_that_were_meant_for_swaa(checkpoint, asked, reason):
    """All forms: tests/integrations/test_vllm_settings.py."""
    assert reason in attempt(checkpoint(), additional_config=asked)


def test_full_attention_that_was_asked_for_is_said(checkpoint, monkeypatch):
    said = []
    logger = logging.getLogger("vllm.swaa")  # vLLM sets levels and handlers anew when it starts
    monkeypatch.setattr(logger, "info", lambda line, *values: said.append(line % values))
    (prompt,) = prompts_of(90)
    with Engine(checkpoint(), "full") as engine:
        answer = engine.answers([prompt], max_tokens=6)[0]
    Judge(checkpoint(), SWAAConfig(window=4096)).check(prompt, answer)
    assert said == ["rank 0: swaa adapted no layer: full attention, as the configuration says"]


@pytest.mark.parametrize("window", [2047, 2048])
def test_a_window_that_no_request_outgrows_is_said(checkpoint, monkeypatch, window):
    from swaa.integrations.vllm import report

    def summary(*given, real=report.summary):
        said.append(real(*given))
        return said[-1]

    said = []
    monkeypatch.setattr(report, "summary", summary)
    with Engine(checkpoint(), {"window": window}):
        pass
    idle = " (no request of 2,048 tokens outgrows it)" if window == 2048 else ""
    assert f": window {window}, 0 sinks{idle}, backend" in said[0]


def test_listed_layers_that_the_model_lacks_are_said_and_left_out(checkpoint, caplog):
    knobs = {**KNOBS, "full_layers": [1, 9], "full_decode": [2, 8]}
    with Engine(checkpoint(), knobs, additional_config={"swaa": knobs, "another": 1}) as engine:
        held = engine.llm.llm_engine.vllm_config.additional_config
    assert held["another"] == 1
    assert parse(held["swaa"]).config == SWAAConfig(
        **{**KNOBS, "full_layers": [1], "full_decode": [2]}
    )
    said = "swaa: full_layers: layers 9 left out, the model's last layer is 3"
    assert said in [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"kv_cache_dtype": "fp8_e5m2"},
            "a KV cache of fp8_e5m2 is not served; use --kv-cache-dtype auto, or fp8",
        ),
        ({"kv_cache_dtype": "int8_per_token_head"}, "cache of int8_per_token_head is not served"),
        (
            {"hf_overrides": {"quantization_config": FP4_CACHE}, "dtype": "bfloat16"},
            "the checkpoint asks for it; use --kv-cache-dtype bfloat16",
        ),
        ({"hf_overrides": {"rswa_window": 64}}, "rswa_window asks for vLLM's own window"),
        ({"kv_cache_dtype": "bfloat16"}, "bfloat16"),  # 0.33 refuses it by itself
        (
            {
                "kv_transfer_config": {
                    "kv_connector": "ExampleConnector",
                    "kv_role": "kv_both",
                }
            },
            "the KV connector ExampleConnector may bring keys",
        ),
        (
            {
                "hf_overrides": {
                    "layer_types": ["sliding_attention"] * 4,
                    "sliding_window": 64,
                    "use_sliding_window": True,
                    "max_window_layers": 4,
                }
            },
            "slides already",
        ),
    ],
    ids=[
        "e5m2",
        "int8",
        "carried",
        "prefix_window",
        "another_type",
        "connector",
        "native",
    ],
)
def test_options_that_are_refused(checkpoint, options, reason):
    assert reason in attempt(checkpoint(), KNOBS, **options)


def test_batch_invariance_is_refused(checkpoint, monkeypatch):
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    said = attempt(checkpoint(), KNOBS)
    assert "VLLM_BATCH_INVARIANT=1 asks for the same bits whatever the batch" in said


@pytest.mark.parametrize(
    ("batches", "refused"), [({"ubatch_size": 2}, True), ({"enable_dbo": True}, True), ({}, False)]
)
def test_batches_that_are_split_behind_the_prompt_lengths_are_refused(batches, refused):
    from vllm.config import ParallelConfig

    from swaa.integrations.vllm.support import _engine_reasons

    config = SimpleNamespace(
        parallel_config=ParallelConfig(**batches),
        kv_transfer_config=None,
        cache_config=SimpleNamespace(cache_dtype="auto"),
        model_config=SimpleNamespace(dtype="torch.float32"),
        attention_config=SimpleNamespace(use_non_causal=False),
        speculative_config=None,
    )
    said = list(_engine_reasons(config))
    assert [text for text in said if "with --ubatch-size 0" in text] == said
    assert len(said) == refused


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"non_causal": True}, "non-causal attention was asked for"),
        ({"adaptive": True}, "adaptive verification trims batches"),
        ({}, None),
    ],
    ids=str,
)
def test_what_vllm_asks_of_backends_that_it_chooses(changes, reason):
    from swaa.integrations.vllm.support import _unchosen_reasons

    speculative = SimpleNamespace(enable_adaptive_verification=changes.get("adaptive", False))
    attention = SimpleNamespace(use_non_causal=changes.get("non_causal", False))
    config = SimpleNamespace(attention_config=attention, speculative_config=speculative)
    said = [text for text in _unchosen_reasons(config) if not reason or reason in text]
    assert len(said) == bool(reason)


@pytest.mark.parametrize("size", [8, 20, 264])
def test_heads_that_our_kernels_do_not_take_are_refused(size):
    from swaa.integrations.vllm.attention import GPUAttention

    with pytest.raises(ValueError, match=f"heads of {size} channels; .* multiples of 8 from 16 to"):
        GPUAttention(4, size, 1.0)


def test_old_gpus_are_refused(monkeypatch):
    from swaa.integrations.vllm import backend

    old = SimpleNamespace(
        is_cpu=lambda: False, is_cuda=lambda: True, has_device_capability=lambda least: least < 80
    )
    monkeypatch.setattr(backend, "current_platform", old)
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or more"):
        backend.platform_attention()


def test_version_outside_the_range(monkeypatch):
    from swaa.integrations.refusal import UnsupportedError
    from swaa.integrations.vllm.support import ANY_VERSION, check_version

    for version in ("0.32.0", "0.32.1+cpu", "0.33.0", "0.33.1rc1"):
        check_version(version)
    for version in ("0.31.0", "0.34.0", "1.0.0", "dev"):
        with pytest.raises(UnsupportedError, match=r"outside the tested range 0\.32 to 0\.33"):
            check_version(version)
    monkeypatch.setenv(ANY_VERSION, "1")
    check_version("0.34.0")


@pytest.mark.parametrize("swaa", [KNOBS, None], ids=["other", "none"])
def test_engine_that_is_not_what_swaa_serve_asked_for(checkpoint, monkeypatch, swaa):
    wanted = parse({**KNOBS, "window": 25}).to_dict()
    monkeypatch.setenv(REQUIRED, json.dumps(wanted, sort_keys=True))
    said = attempt(checkpoint(), swaa)
    assert "'swaa serve' asked for" in said
    assert '"window": 25' in said
    assert ('"window": 24' in said) == (swaa is not None)


@pytest.mark.parametrize("name", ["full_decode", "sliding"])
def test_beam_search_is_refused_where_rows_have_phases(checkpoint, name):
    """It asks for every token anew, as the end of a longer prompt."""
    from vllm.sampling_params import BeamSearchParams

    (prompt,) = prompts_of(90)
    wanted = [{"prompt_token_ids": prompt}], BeamSearchParams(beam_width=2, max_tokens=4)
    with Engine(checkpoint(), CONFIGS[name].to_dict()) as engine:
        # Without phases it goes on, to the tokenizer that these tests do not have.
        reason = "swaa: beam search" if name == "full_decode" else "skip_tokenizer_init"
        with pytest.raises(ValueError, match=reason):
            engine.llm.beam_search(*wanted)


def unhook(monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, getattr(owner, name).swaa_original)


def test_layers_that_are_not_handed_their_backend_stop_the_engine(checkpoint, monkeypatch):
    from vllm.model_executor.layers.attention.attention import Attention

    unhook(monkeypatch, Attention, "__init__")
    assert "0 of 4 layers" in attempt(checkpoint(), KNOBS)


def test_layers_without_our_attention_stop_the_engine(checkpoint, monkeypatch):
    from swaa.integrations.vllm import backend

    monkeypatch.setattr(backend, "sliding_backend", lambda memory: backend.platform_attention()[0])
    assert "its attention is CPUAttentionBackendImpl" in attempt(checkpoint(), KNOBS)


def test_cache_that_is_not_ours_stops_the_engine(checkpoint, monkeypatch):
    from swaa.integrations.vllm import backend

    def stock_cache(memory, real=backend.sliding_backend):
        mine = real(memory)
        return type("Broken", (mine,), {"customize_spec": classmethod(lambda cls, spec: spec)})

    monkeypatch.setattr(backend, "sliding_backend", stock_cache)
    assert "its cache is FullAttentionSpec" in attempt(checkpoint(), KNOBS)


def test_prefix_cache_without_its_limit_stops_the_engine(checkpoint, monkeypatch):
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    unhook(monkeypatch, KVCacheManager, "get_computed_blocks")
    assert "not active in vLLM's engine core" in attempt(checkpoint(), KNOBS)


def test_runner_without_prompt_lengths_stops_the_engine(checkpoint, monkeypatch):
    from vllm.config import ModelConfig

    monkeypatch.setattr(ModelConfig, "rswa_window", property(lambda self: None))
    assert "does not pass prompt lengths" in attempt(checkpoint(), KNOBS)


BROKEN = """
import sys, os
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
import vllm.v1.core.kv_cache_manager as broken
del broken.KVCacheManager.get_computed_blocks
from tests.vllm.engine import Engine
Engine(sys.argv[1], {swaa})
"""


@pytest.mark.parametrize("swaa", [KNOBS, None], ids=["configured", "unconfigured"])
def test_hooks_that_no_longer_fit_stop_configured_engines_only(checkpoint, swaa):
    code = BROKEN.format(swaa=json.dumps(swaa).replace("true", "True").replace("null", "None"))
    ran = subprocess.run(
        [sys.executable, "-c", code, checkpoint()], capture_output=True, text=True, check=False
    )
    said = "swaa cannot be applied to this vLLM: vLLM has no" in ran.stderr
    assert said == (swaa is not None)
    assert (ran.returncode == 0) == (swaa is None), ran.stderr[-2000:]


WITHOUT_PLUGIN = """
import sys
from tests.vllm.engine import Engine, Judge, prompts_of
from swaa.config import SWAAConfig
(prompt,) = prompts_of(90)
with Engine(sys.argv[1], {swaa}) as engine:
    answer = engine.answers([prompt], max_tokens=6)[0]
Judge(sys.argv[1], SWAAConfig(window=4096)).check(prompt, answer)
"""


def test_vllm_without_the_plugin_ignores_the_configuration(checkpoint):
    """What docs/reference/vllm.md warns of; when this fails, vLLM has learned to tell."""
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_PLUGIN.format(swaa=KNOBS), checkpoint()],
        env=os.environ | {"VLLM_PLUGINS": "another"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
