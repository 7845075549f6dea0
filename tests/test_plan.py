import dataclasses

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import swaa
from swaa import models
from swaa.attention.mask import left_bounds, visible
from swaa.config import LayerPlan, SWAAConfig
from swaa.integrations.transformers.cache import SWAACache
from swaa.integrations.transformers.cache_name import cache_argument
from swaa.plan import price, visible_pairs
from swaa.shapes import LayerShape, ModelShape, read_shape, shape_of
from tests.gguf_file import write_gguf

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "max_position_embeddings": 512,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GEMMA3 = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 12,
    "query_pre_attn_scalar": 8,
}


def _config(name, **changes):
    return getattr(transformers, f"{name}Config")(**(TINY | changes))


PLANS = {
    "full": LayerPlan(window=None),
    "window": LayerPlan(window=5),
    "window of one key": LayerPlan(window=1),
    "sinks": LayerPlan(window=5, sink_tokens=3),
    "tail": LayerPlan(window=5, sink_tokens=3, dense_tail=4),
    "decode": LayerPlan(window=5, sink_tokens=3, full_decode=True),
    "tail and decode": LayerPlan(window=5, sink_tokens=3, full_decode=True, dense_tail=4),
}


@pytest.mark.parametrize("decode", [{"full_decode": True}, {"full_layers": "all"}])
def test_generated_rows_that_choose_are_priced_by_what_they_read(decode):
    shape = shape_of(_config("Qwen3"))
    full = SWAAConfig(window=64, sink_tokens=16, **decode)
    few = dataclasses.replace(full, decode_keys=96)
    costs = [price(shape, config, prompt_length=512).cost for config in (full, few)]
    heads = 4 * 8 * 4  # of layers, and their channels
    assert costs[0].decode_attention_flops == 4 * heads * 513
    # What it reads, and a mean and a deviation for each page.
    assert costs[1].decode_attention_flops == 4 * heads * (64 + 16 + 96 + 512 // 16)
    assert costs[1].prefill_attention_flops == costs[0].prefill_attention_flops
    assert costs[1].kv_steady_bytes * 16 == costs[0].kv_steady_bytes * 17


@pytest.mark.parametrize("prompt_length", [1, 4, 8, 9, 21])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_visible_pairs_equal_the_rule(plan, prompt_length):
    end = prompt_length + 3
    rows = torch.arange(end)[None]
    full_from, full_until = plan.full_rows(prompt_length)
    left = left_bounds(rows, window=plan.window, full_from=full_from, full_until=full_until)
    seen = visible(rows, rows, left, sink_tokens=plan.sink_tokens)[0].sum(-1)
    for first in range(end):
        for last in range(first, end):
            expected = int(seen[first:last].sum())
            assert visible_pairs(plan, prompt_length, first, last) == expected


CACHE_CONFIGS = {
    "full": SWAAConfig(window=None),
    "sliding": SWAAConfig(window=16, sink_tokens=4),
    "full decode": SWAAConfig(window=16, sink_tokens=4, full_decode=True, dense_tail=8),
    "tail": SWAAConfig(window=16, sink_tokens=4, dense_tail=8),
    "decode in half": SWAAConfig(window=16, sink_tokens=4, full_decode="middle:1/2", dense_tail=8),
    "interleaved": SWAAConfig(window=16, sink_tokens=4, full_layers=[1]),
}


@pytest.mark.parametrize("name", ["Llama", "Gemma3Text"])
@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("config", CACHE_CONFIGS.values(), ids=CACHE_CONFIGS.keys())
def test_kv_bytes_are_those_of_the_real_cache(name, config, chunk):
    changes = {} if name == "Llama" else GEMMA3
    model = AutoModelForCausalLM.from_config(_config(name, **changes)).eval()
    swaa.adapt(model, config, quiet=True)
    layers = range(model.config.num_hidden_layers)
    plans = [config.layers(len(layers))[i] for i in layers]
    full = {i for i in layers if shape_of(model.config).layers[i].kind == "full"}
    plans = [plan if i in full else LayerPlan(window=None) for i, plan in enumerate(plans)]
    cache = SWAACache(model.config, plans)
    prompt = torch.randint(1, 96, (2, 61))
    with torch.no_grad(), swaa.prompt_length(61):
        for part in prompt.split(chunk or 61, dim=1):
            model(part, **cache_argument(cache))
    result = price(model.config, config, prompt_length=61, batch=2, chunk=chunk, dtype="float32")
    assert result.cost.kv_steady_bytes == cache.kv_bytes()
    assert result.cost.kv_peak_bytes == cache.peak_kv_bytes


FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {},
    "Phi3": {},
    "Olmo2": {},
    "Granite": {},
    "SmolLM3": {},
    "Glm4": {},
    "Gemma3Text": GEMMA3,
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": MOE | {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
    "Qwen2Moe": MOE | {"shared_expert_intermediate_size": 24},
}


@pytest.mark.parametrize(("name", "changes"), FAMILIES.items(), ids=FAMILIES.keys())
def test_linear_weights_are_those_of_the_real_layers(name, changes):
    config = _config(name, **changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config)
    for layer, module in zip(shape.layers, model.model.layers, strict=True):
        used = 0
        for weight in (weight for weight in module.parameters() if weight.dim() > 1):
            in_use = config.num_experts_per_tok / 4 if weight.dim() == 3 else 1
            used += weight.numel() * in_use
        assert layer.linear_weights == used
    assert shape.head_weights == model.lm_head.weight.numel()


def test_flops_of_a_layer_by_hand():
    layer = LayerShape(kind="full", heads=4, kv_heads=2, head_dim=8, linear_weights=100)
    shape = ModelShape(model_type="tiny", layers=(layer, layer), head_weights=50)
    result = price(shape, SWAAConfig(window=2, full_layers=(0,)), prompt_length=4, batch=3)
    full, sliding = result.cost.layers
    assert full.prefill_flops == 3 * 4 * 4 * 8 * (1 + 2 + 3 + 4)
    assert sliding.prefill_flops == 3 * 4 * 4 * 8 * (1 + 2 + 2 + 2)
    assert (full.decode_flops, sliding.decode_flops) == (3 * 4 * 4 * 8 * 5, 3 * 4 * 4 * 8 * 2)
    assert result.cost.prefill_linear_flops == 3 * 2 * (4 * 200 + 50)
    assert result.cost.decode_flops == full.decode_flops + sliding.decode_flops + 3 * 2 * 250
    assert result.full.prefill_attention_flops == 2 * full.prefill_flops
    assert result.ratios()["kv_steady_bytes"] == (4 + 2) / 8
    assert (full.role, sliding.role) == ("full", "sliding")


def test_hybrid_prices_its_softmax_layers_only():
    config = transformers.Qwen3NextConfig(num_hidden_layers=8)
    result = price(config, SWAAConfig(window=64), prompt_length=1000)
    assert [layer.role for layer in result.cost.layers[:4]] == ["no attention"] * 3 + ["sliding"]
    assert result.cost.layers[0].kv_bytes == 0
    assert result.cost.layers[3].kv_tokens == 64
    assert result.cost.prefill_linear_flops is None
    assert "FLOPs are those of softmax attention only" in result.notes[0]


@pytest.mark.parametrize(
    "config",
    [
        lambda: transformers.Gemma3Config(text_config=_config("Gemma3Text", **GEMMA3).to_dict()),
        lambda: transformers.MllamaConfig(),
        lambda: transformers.Qwen2VLConfig(),
    ],
    ids=["gemma3", "mllama", "qwen2_vl"],
)
def test_a_composite_is_refused_as_adapt_refuses_it(config, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be adapted"):
        shape_of(config())
    config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be adapted"):
        read_shape(str(tmp_path))


def test_what_adapt_refuses_by_its_modules_is_refused_too(tmp_path):
    transformers.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="AttentionInterface"):
        read_shape(str(tmp_path))


def test_weights_are_counted_and_fit_or_not(tmp_path):
    config = _config("Llama", dtype="float16")
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = 2 * sum(weight.numel() for weight in model.parameters())
    for name in (str(tmp_path), str(tmp_path / "config.json")):
        result = price(name, SWAAConfig(window=4), prompt_length=100)
        assert result.weight_bytes == weights
        assert result.needed_bytes() == weights + result.cost.kv_peak_bytes
    assert price(config, SWAAConfig(window=4)).needed_bytes() is None


def test_shapes_of_the_benchmark_have_a_price():
    shape = read_shape("qwen3-4b")
    assert (shape.parameters, len(shape.layers)) == (4_022_468_096, 36)


def test_notes_say_what_a_reader_would_miss():
    gemma = _config("Gemma3Text", **GEMMA3)
    notes = price(gemma, SWAAConfig(window=4, full_layers="odd"), prompt_length=1000).notes
    assert any("Nothing changes" in note for note in notes)
    assert any("longer than the 512" in note for note in notes)
    short = price(_config("Llama"), SWAAConfig(window=4, sink_tokens=4), prompt_length=8)
    assert short.notes == (
        "The prompt fits into window and sinks: it is computed as with full attention.",
    )
    assert price(_config("Llama"), SWAAConfig(window=4), prompt_length=500).notes == ()


def test_defaults_are_the_trained_context_and_the_checkpoints_dtype():
    config = _config("Llama", dtype="float16")
    result = price(config, SWAAConfig(window=4))
    assert (result.prompt_length, result.chunk, result.dtype) == (512, 512, "float16")
    assert dataclasses.asdict(result)["cost"]["kv_steady_bytes"] == 4 * 4 * 2 * 2 * 8 * 2
    assert result.to_dict()["config"]["window"] == 4


def test_a_folder_with_a_config_is_enough(tmp_path):
    _config("Qwen3", swaa={"window": 7}).save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    assert (len(shape.layers), shape.model_type, shape.swaa) == (4, "qwen3", {"window": 7})


def test_gguf_metadata_is_enough(tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="needs the extra gguf")
    path = write_gguf(tmp_path / "tiny.gguf", weights=False)
    shape = read_shape(str(path))
    layer = shape.layers[-1]
    assert (len(shape.layers), shape.trained_context) == (2, 512)
    assert (layer.kind, layer.heads, layer.kv_heads, layer.head_dim) == ("full", 4, 2, 16)
    linear = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)
    assert sum(each.linear_weights for each in shape.layers) == linear
    assert shape.head_weights == 97 * 64
    assert shape.parameters == linear + 97 * 64 + 5 * 64  # its norms
    assert shape.dtype == models.dequantised_dtype()  # as generate loads it
    assert models.dequantised_dtype("cpu") == "float32"
    monkeypatch.setattr(models, "embedded_model_path", lambda: path)
    assert read_shape("smollm2") == shape


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: transformers.T5Config(), "is an encoder-decoder"),
        (lambda: transformers.DeepseekV3Config(), "compresses its keys"),
        (lambda: transformers.Llama4TextConfig(), "attends within chunks"),
        (lambda: transformers.Gemma2Config(), "soft-caps its scores"),
        (lambda: transformers.GptOssConfig(), "has learned sink logits"),
        (lambda: transformers.MambaConfig(), "has no full-attention layer"),
        (lambda: transformers.MistralConfig(sliding_window=8), "has no full-attention layer"),
        (lambda: transformers.ViTConfig(), "is not a language model"),
        (lambda: _config("Llama", num_kv_shared_layers=2), "shares keys and values"),
        (lambda: _config("Llama", layer_types=["hybrid"] * 4), "layers of type hybrid"),
    ],
)
def test_what_cannot_be_priced_is_refused_with_the_reason(config, message):
    with pytest.raises(ValueError, match=message):
        price(config(), SWAAConfig(window=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_length": 0}, "prompt_length is 0; expected at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"dtype": "int8"}, "a cache of 'int8' cannot be priced; give float32"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        price(_config("Llama"), SWAAConfig(window=4), **arguments)


def test_unreadable_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ValueError, match="cannot read the configuration of"):
        read_shape(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        read_shape(str(tmp_path / "missing.gguf"))


def test_selected_layers_cost_their_keys_and_the_choice():
    shape = shape_of(_config("Llama"))
    sliding = SWAAConfig(window=16, sink_tokens=4, full_decode=True, dense_tail=2)
    chosen = dataclasses.replace(sliding, selected_layers=[1], selected_keys=64)
    costs = [price(shape, config, prompt_length=400).cost.layers for config in (sliding, chosen)]
    assert costs[1][0] == costs[0][0]
    assert costs[1][1].role == "selected"
    assert costs[1][1].kv_bytes == costs[0][1].kv_bytes
    # 398 rows: from the 85th on, 64 more keys each; before, those that are there.
    more = sum(min(i + 1, 84) - min(i + 1, 20) for i in range(398))
    scored = 398 * 398 // (2 * 4 * 64)
    assert costs[1][1].prefill_flops - costs[0][1].prefill_flops == 4 * 8 * (4 * more + 8 * scored)
