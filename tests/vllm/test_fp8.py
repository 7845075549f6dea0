"""Keys and values in fp8, in every kind of layer, against a model that rounds them alike."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.vllm import test_decode_keys as chosen
from tests.vllm.conftest import MISSING
from tests.vllm.engine import BLOCK, Engine, generating_judge, prompts_of
from tests.vllm.test_features import CONFIGS
from tests.vllm.test_start import KNOBS, attempt

if not MISSING:
    from tests.vllm.fp8 import FP8, TOLERANCE, RoundedJudge, round_cache

CONFIG = CONFIGS["all_kinds"]
OWN = CONFIGS["heads_tail"]
# Of keys and of values, by layer: of a checkpoint that brings them.
FACTORS = {n: (0.02 * (n + 1), 0.05 / (n + 1)) for n in range(4)}
SCHEME = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}


def scaled(**scheme):
    """The quantisation of a checkpoint that has factors of keys and values and nothing else."""
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {},
            "ignore": [],
            "kv_cache_scheme": {"strategy": "tensor", **SCHEME, **scheme},
        }
    }


@pytest.fixture(scope="module")
def engine(checkpoint):
    from swaa.integrations.vllm import report

    def summary(*given, real=report.summary):
        said.append(real(*given))
        return said[-1]

    said = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "summary", summary)
        with Engine(checkpoint(), CONFIG.to_dict(), kv_cache_dtype="fp8") as engine:
            engine.said = said
            yield engine


@pytest.fixture(scope="module")
def judge(checkpoint):
    return RoundedJudge(checkpoint(), CONFIG)


@pytest.fixture
def with_factors(tmp_path, checkpoint):
    """A checkpoint of four KV heads with factors of keys and values in each layer."""
    from safetensors.torch import load_file, save_file

    folder = Path(checkpoint(kv_heads=4))
    weights = load_file(folder / "model.safetensors")
    for layer, factors in FACTORS.items():
        for name, factor in zip(("k_scale", "v_scale"), factors, strict=True):
            weights[f"model.layers.{layer}.self_attn.{name}"] = torch.tensor([factor])
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    return str(tmp_path)


def assert_rounded_alike(judge, prompts, answers, record_property):
    """Tokens are the judge's, and nearly all rows agree as closely as in float32."""
    near, far = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)
        near.append(judge.errors(prompt, answer))
        far.append(judge.exact().errors(prompt, answer))
    near, far = torch.cat(near), torch.cat(far)
    said = {
        "median": float(near.median()),
        "largest": float(near.max()),
        "median against unrounded keys": float(far.median()),
        "largest against unrounded keys": float(far.max()),
    }
    print("errors of log-probabilities:", json.dumps(said))
    record_property("errors of log-probabilities", json.dumps(said))
    assert near.median() < 1e-4
    assert far.median() > 10 * near.median(), "the judge cannot tell rounded keys from others"


def test_mixed_batch(engine, judge, record_property):
    prompts = prompts_of(5, 300, 33, 129, 70)
    assert_rounded_alike(judge, prompts, engine.answers(prompts), record_property)


def test_prefix_cache(engine, judge):
    base, more = prompts_of(260, 90, seed=5)
    for prompt, hit in ((base, 0), (base, 224), (base + more, 224)):
        output = engine.run([prompt])[0]
        assert output.num_cached_tokens == hit // BLOCK * BLOCK
        judge.check(prompt, output.outputs[0])


def test_every_layer_is_ours_and_a_quarter_as_large(engine):
    from swaa.integrations.vllm.attention import SlidingAttention

    config = engine.llm.llm_engine.vllm_config
    layers = config.compilation_config.static_forward_context.values()
    assert len(layers) == 4
    for layer in layers:
        assert isinstance(layer.impl, SlidingAttention)
        assert layer.kv_cache.element_size() == 1
    for group in engine.scheduler.kv_cache_config.kv_cache_groups:
        spec = group.kv_cache_spec
        assert spec.page_size_bytes == BLOCK * spec.num_kv_heads * 2 * spec.head_size
    assert "; fp8 KV cache of 400 blocks holds" in engine.said[0]


def test_factors_of_the_checkpoint_in_layers_of_unlike_heads(
    with_factors, checkpoint, record_property
):
    prompts = prompts_of(5, 300, 70)
    options = {"hf_overrides": scaled()}
    with Engine(with_factors, OWN.to_dict(), **options) as engine:
        answers = engine.answers(prompts)
    judge = RoundedJudge(checkpoint(kv_heads=4), OWN, FACTORS)
    assert_rounded_alike(judge, prompts, answers, record_property)


def test_keys_that_are_chosen(checkpoint, monkeypatch):
    """By prompt rows in blocks, by generated rows in pages, whose statistics are not in fp8."""
    round_cache(monkeypatch)
    judge = generating_judge(checkpoint())
    prompts = prompts_of(129, 500, seed=500)
    # A number that is rounded to the other side can make one row choose another page.
    options = {"config": chosen.CONFIG, "chunk": chosen.CHUNK, "near": TOLERANCE, "apart": 1}
    with Engine(
        checkpoint(), chosen.CONFIG.to_dict(), kv_cache_dtype="fp8_e4m3", **chosen.OPTIONS
    ) as engine:
        for prompt in prompts:
            answer = engine.answers([prompt], max_tokens=chosen.NEW)[0]
            judge(prompt, answer, **options)
        monkeypatch.undo()
        with pytest.raises(AssertionError):  # the same without rounding
            judge(prompt, answer, **options)


@pytest.mark.parametrize("scale", [0.02, 1.0, 7.0])
def test_numbers_are_rounded_to_the_nearest(scale):
    from swaa.integrations.vllm.attention import to_fp8

    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes[(codes & 127) != 127].view(FP8).float().sort().values
    x = torch.cat([torch.randn(2000), 100 * torch.randn(2000)]) * scale
    nearest = numbers[(x[:, None] / scale - numbers).abs().argmin(1)]
    assert (to_fp8(x, scale).float() - x / scale).abs().equal((nearest - x / scale).abs())
    assert to_fp8(torch.tensor([1e6, -1e6]), scale).float().tolist() == [448.0, -448.0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"hf_overrides": scaled(strategy="attn_head"), "dtype": "bfloat16"},
            "has factors of its fp8 keys for each KV head, and served is one a layer;"
            " use --kv-cache-dtype bfloat16",
        ),
        (
            {"kv_cache_dtype": "fp8", "kv_cache_dtype_skip_layers": ["1"]},
            "--kv-cache-dtype-skip-layers makes pages of two sizes",
        ),
    ],
    ids=["heads", "skipped"],
)
def test_caches_that_are_refused(checkpoint, options, reason):
    assert reason in attempt(checkpoint(), KNOBS, **options)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"capability": 80}, "needs an NVIDIA GPU of compute capability 8.9 or more"),
        ({"capability": 0}, "needs an NVIDIA GPU of compute capability 8.9 or more"),
        ({"hybrid": True}, "was not tried next to states of linear layers"),
        ({"method": "draft_model"}, "was not tried next to a draft model; choose ngram"),
        ({"method": "ngram"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_engines_that_are_refused_an_fp8_cache(monkeypatch, changes, reason):
    from swaa.integrations.vllm import support

    capability = changes.get("capability", 90)
    platform = SimpleNamespace(
        is_cpu=lambda: False,
        is_cuda=lambda: capability > 0,
        has_device_capability=lambda least: capability >= least,
    )
    monkeypatch.setattr("vllm.platforms.current_platform", platform)
    speculative = SimpleNamespace(method=changes.get("method"), draft_model_config="draft")
    config = SimpleNamespace(
        model_config=SimpleNamespace(is_hybrid=changes.get("hybrid", False), dtype="bfloat16"),
        speculative_config=speculative if "method" in changes else None,
        cache_config=SimpleNamespace(cache_dtype="fp8", kv_cache_dtype_skip_layers=[]),
        quant_config=None,
    )
    said = list(support._cache_reasons(config))
    assert len(said) == (reason is not None)
    assert all(reason in text for text in said)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_vllms_kernel_rounds_as_our_judge_does():
    from vllm.v1.attention.ops.triton_reshape_and_cache_flash import triton_reshape_and_cache_flash

    from swaa.integrations.vllm.attention import to_fp8

    rows = 100 * torch.randn(64, 2, 64, device="cuda", dtype=torch.bfloat16)
    pages = torch.zeros(2, 8, 16, 2, 64, dtype=torch.uint8, device="cuda").view(FP8)
    factors = [torch.tensor(x, device="cuda") for x in (0.05, 3.0)]
    slots = torch.randperm(8 * 16, device="cuda")[:64]
    triton_reshape_and_cache_flash(rows, rows, *pages, slots, "fp8", *factors)
    for x, factor in zip(pages, factors, strict=True):
        found = x.flatten(0, 1)[slots].float()
        assert torch.equal(found, to_fp8(rows, float(factor)).float())
