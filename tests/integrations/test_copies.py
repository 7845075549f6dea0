"""What an adapted model carries survives copies, pickles, other models and other libraries."""

import copy
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
from transformers.masking_utils import causal_mask_function, or_masks

import swaa
from swaa import SWAAConfig
from swaa.integrations.transformers.attention import swaa_attention_forward
from swaa.integrations.transformers.mask import swaa_mask
from swaa.integrations.transformers.support import execution_device
from tests.integrations.families import COMMON, tiny_model
from tests.integrations.test_phase_of_a_call import (
    FULL_DECODE,
    GREEDY,
    SLIDING,
    sharp_model,
    tokens,
)


@pytest.mark.parametrize("had", [False, True])
def test_a_copy_is_restored_like_the_model_itself(had, tmp_path):
    model = sharp_model()
    if had:
        model.config.swaa = SLIDING.to_dict()
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    expected = model.generate(tokens(41), **GREEDY)
    swaa.adapt(model, FULL_DECODE, quiet=True)
    adapted = model.generate(tokens(41), **GREEDY)
    for twin in (copy.deepcopy(model), copy.deepcopy(copy.deepcopy(model))):
        assert torch.equal(twin.generate(tokens(41), **GREEDY), adapted)
        swaa.restore(twin)
        assert getattr(twin.config, "swaa", None) == (SLIDING.to_dict() if had else None)
        assert torch.equal(twin.generate(tokens(41), **GREEDY), expected)
        assert {name: set(vars(module)) for name, module in twin.named_modules()} == attributes
        assert not twin._forward_hooks
        assert not twin._forward_pre_hooks
        assert not twin._forward_hooks_always_called
        twin.save_pretrained(tmp_path)
    assert torch.equal(model.generate(tokens(41), **GREEDY), adapted)


def test_a_pickled_model_answers_in_a_new_process(tmp_path):
    model = sharp_model()
    expected = [model.generate(tokens(20), **GREEDY)]
    swaa.adapt(model, FULL_DECODE, quiet=True)
    expected.insert(0, model.generate(tokens(20), **GREEDY))
    torch.save((model, tokens(20)), tmp_path / "model.pt")
    code = (
        "import sys, torch\n"  # not even swaa is imported
        "model, ids = torch.load(sys.argv[1], weights_only=False)\n"
        "answers = [model.generate(ids, max_new_tokens=6, do_sample=False)]\n"
        "import swaa; swaa.restore(model)\n"
        "answers.append(model.generate(ids, max_new_tokens=6, do_sample=False))\n"
        "torch.save(answers, sys.argv[1])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for answer, wanted in zip(torch.load(tmp_path / "model.pt"), expected, strict=True):
        assert torch.equal(answer, wanted)


def test_models_that_share_a_configuration_are_adapted_one_by_one():
    config = AutoConfig.for_model("llama", **COMMON)
    one, other = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    with torch.no_grad():
        expected = other(tokens(41)).logits
        before = one(tokens(41)).logits
        swaa.adapt(one, SLIDING, quiet=True)
        assert torch.equal(other(tokens(41)).logits, expected)
        assert not torch.equal(one(tokens(41)).logits, before)
        swaa.adapt(other, SWAAConfig(window=3), quiet=True)
        swaa.restore(one)
        assert torch.equal(one(tokens(41)).logits, before)
        assert not torch.equal(other(tokens(41)).logits, expected)
    assert other.config.swaa["window"] == 3
    assert not hasattr(config, "swaa")


def test_an_implementation_that_was_switched_away_is_noticed():
    model = sharp_model(FULL_DECODE)
    expected = model.generate(tokens(41), **GREEDY)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        with pytest.raises(ValueError, match="was switched to 'eager' since"):
            model.generate(tokens(41), **GREEDY)
        with pytest.warns(UserWarning, match="was switched to 'eager' since"):
            model(tokens(41), output_attentions=True)
        model.set_attn_implementation("swaa")
        assert torch.equal(model.generate(tokens(41), **GREEDY), expected)

        def switch(ids, scores):
            model.set_attn_implementation("sdpa")
            return scores

        with pytest.raises(ValueError, match="was switched to 'sdpa' since"):
            model.generate(tokens(41), logits_processor=[switch], **GREEDY)
    swaa.restore(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.filterwarnings("ignore:You are calling .generate")  # of Transformers before 5.23
@pytest.mark.parametrize(
    "on_disk",
    [slice(1), slice(1, 3), slice(5)],
    ids=["embeddings", "first layers", "all but the head"],
)
def test_weights_offloaded_to_disk(on_disk, tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is an optional extra")
    expected = sharp_model(FULL_DECODE).generate(tokens(20), **GREEDY)
    sharp_model().save_pretrained(tmp_path)
    names = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(4))]
    rest = ["model.norm", "model.rotary_emb", "lm_head"]
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        device_map=dict.fromkeys([*names, *rest], "cpu") | dict.fromkeys(names[on_disk], "disk"),
        offload_folder=tmp_path / "offloaded",
    )
    assert execution_device(model).type == "cpu"
    swaa.adapt(model, FULL_DECODE, warm_up=True, quiet=True)
    assert torch.equal(model.generate(tokens(20), **GREEDY), expected)


def test_a_model_without_weights_is_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **COMMON))
    with pytest.raises(ValueError, match="weights are not loaded"):
        swaa.adapt(model, SLIDING)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_encoders_do_not_become_causal(family):
    config = AutoConfig.for_model(family, **COMMON)
    with pytest.raises(ValueError, match="attends in both directions"):
        swaa.adapt(AutoModelForCausalLM.from_config(config), SLIDING)
    config.is_decoder = True
    assert swaa.adapt(AutoModelForCausalLM.from_config(config), SLIDING, quiet=True)


def test_attention_in_both_directions_is_refused_later_too():
    model = tiny_model("llama")
    swaa.adapt(model, SLIDING, quiet=True)
    with pytest.raises(ValueError, match="in both directions"):
        model(tokens(12), is_causal=False)
    q = torch.zeros(1, 4, 12, 16)
    rows = swaa_mask(1, 12, 12)
    with pytest.raises(ValueError, match="is_causal=False asks for attention in both directions"):
        swaa_attention_forward(model.model.layers[0].self_attn, q, q, q, rows, is_causal=False)
    model.config.is_causal = False
    with pytest.raises(ValueError, match="this model attends in both directions"):
        model(tokens(12))


def test_a_mask_that_is_overlaid_by_block_is_refused():
    overlaid = or_masks(causal_mask_function, causal_mask_function)
    with pytest.raises(ValueError, match="overlays a mask of its own"):
        swaa_mask(1, 12, 12, mask_function=overlaid)


@pytest.mark.parametrize("part", ["forward", "layers"])
def test_compiled_parts_generate_where_nothing_depends_on_the_prompts_end(part):
    model = sharp_model(SLIDING, num_hidden_layers=1)
    greedy = {**GREEDY, "max_new_tokens": 3}
    expected = model.generate(tokens(20), **greedy)
    compile_part(model, part)
    assert torch.equal(model.generate(tokens(20), **greedy), expected)


def compile_part(model, part):
    if part == "module":
        model.compile(backend="eager")
    elif part == "layers":
        for layer in model.model.layers:
            layer.compile(backend="eager")
    else:
        module = model if part == "forward" else model.model
        module.forward = torch.compile(module.forward, backend="eager")


@pytest.mark.parametrize("part", ["forward", "backbone", "module"])
def test_a_compiled_forward_that_would_miss_the_prompts_end_is_refused_with_the_way_out(part):
    config = SWAAConfig(window=8, sink_tokens=3, full_decode=True)
    model = sharp_model(config, num_hidden_layers=2)
    expected = model.generate(tokens(20), **GREEDY)
    compile_part(model, part)
    with pytest.raises(ValueError, match="forward is compiled and cannot see where the prompt"):
        model.generate(tokens(20), **GREEDY)
    vars(model).pop("forward", None)
    vars(model.model).pop("forward", None)
    model._compiled_call_impl = None
    options = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(model.generate(tokens(20), **GREEDY, **options), expected)
