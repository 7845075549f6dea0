"""A phase belongs to the sequences of one call: guidance, nested calls, other models, threads."""

import sys
import threading

import pytest
import torch
from transformers import (
    CompileConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

import swaa
from swaa import SWAAConfig
from swaa.integrations.transformers.cache_name import cache_argument, cache_of
from swaa.integrations.transformers.fast import graph_sample
from swaa.phase import full_attention
from tests.integrations.families import layer_types, tiny_model
from tests.integrations.loop_model import build_masks, loop_logits, rows_of

FULL_DECODE = SWAAConfig(window=8, sink_tokens=3, full_layers=[1], full_decode=True, dense_tail=4)
MIXED_TAIL = SWAAConfig(window=8, sink_tokens=3, full_decode=[3], dense_tail=5)
SLIDING = SWAAConfig(window=8, sink_tokens=3)
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def tokens(count, seed=1):
    return torch.randint(2, 97, (1, count), generator=torch.Generator().manual_seed(seed))


def sharp_model(config=None, *, seed=0, **options):
    """Weights so large that a row with a wrong mask chooses another token."""
    model = tiny_model("llama", **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(4 * parameter + 0.02 * noise)
    if config is not None:
        swaa.adapt(model, config, quiet=True)
    return model


def last_logprobs(model, ids, prompt):
    masks = build_masks(
        FULL_DECODE, layer_types(model), [0], ids.shape[1], rows_of(prompt, 4, ids.shape[1])
    )
    return loop_logits(model, ids, masks, None)[:, -1].log_softmax(-1)


@pytest.mark.parametrize("negative", [20, 60])
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"prefill_chunk_size": 10}])
def test_a_negative_prompt_ends_where_it_ends(negative, options):
    model, ids, no = sharp_model(FULL_DECODE), tokens(41), tokens(negative, seed=5)
    output = model.generate(
        ids,
        negative_prompt_ids=no,
        guidance_scale=2.0,
        output_scores=True,
        return_dict_in_generate=True,
        **{**GREEDY, "max_new_tokens": 3},
        **options,
    )
    answer = output.sequences[:, 41:]
    for step, scores in enumerate(output.scores):
        wanted, unwanted = (
            last_logprobs(model, torch.cat([text, answer[:, :step]], 1), text.shape[1])
            for text in (ids, no)
        )
        guided = 2.0 * (wanted - unwanted) + unwanted
        torch.testing.assert_close(scores, guided, atol=1e-3, rtol=1e-4)


def test_a_guidance_processor_of_the_callers_own_is_served_and_left_as_it_is():
    model, no = sharp_model(FULL_DECODE), tokens(23, seed=5)
    own = UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, model, unconditional_ids=no)
    given = model.generate(tokens(41), logits_processor=LogitsProcessorList([own]), **GREEDY)
    made = model.generate(tokens(41), negative_prompt_ids=no, guidance_scale=2.0, **GREEDY)
    assert torch.equal(given, made)
    assert own.model is model


def test_guidance_does_not_go_with_drafts():
    model = sharp_model(SLIDING)
    with pytest.raises(ValueError, match="drafts that are taken back"):
        model.generate(tokens(41), guidance_scale=2.0, prompt_lookup_num_tokens=3, **GREEDY)


@pytest.mark.parametrize("other", ["the same model", "another model"])
def test_what_processors_and_criteria_generate_is_a_call_of_its_own(other):
    model = sharp_model(FULL_DECODE)
    asked = model if other == "the same model" else sharp_model(MIXED_TAIL, seed=5)
    question = tokens(17 if asked is model else 60, seed=3)
    alone, inside = asked.generate(question, **GREEDY), []
    expected = model.generate(tokens(41), **GREEDY)

    def ask(ids, *scores, **options):
        inside.append(asked.generate(question, **GREEDY))
        return scores[0] if scores and scores[0] is not None else torch.zeros(1, dtype=torch.bool)

    def stop(ids, scores, **options):
        ask(ids)
        return torch.zeros(1, dtype=torch.bool)

    answers = [
        model.generate(tokens(41), logits_processor=LogitsProcessorList([ask]), **GREEDY),
        model.generate(tokens(41), stopping_criteria=StoppingCriteriaList([stop]), **GREEDY),
    ]
    assert all(torch.equal(answer, expected) for answer in answers)
    assert len(inside) == 12
    assert all(torch.equal(answer, alone) for answer in inside)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("part", ["model", "backbone"])
def test_a_pass_that_no_call_describes_is_refused_inside_a_call(part, static):
    model = sharp_model(FULL_DECODE)
    options = {"cache_implementation": "static", "disable_compile": True} if static else {}

    def ask(ids, scores):
        (model if part == "model" else model.model)(ids)
        return scores

    with pytest.raises(ValueError, match="prompt length is not declared"):
        model.generate(tokens(41), logits_processor=LogitsProcessorList([ask]), **GREEDY, **options)


def test_a_declaration_holds_for_its_own_pass_and_not_for_the_call_around_or_inside():
    model, text = sharp_model(FULL_DECODE), tokens(20, seed=4)
    with torch.no_grad(), swaa.prompt_length(12):
        alone = model(text).logits
    expected, inside = model.generate(tokens(41), **GREEDY), []

    def ask(ids, scores):
        with torch.no_grad(), swaa.prompt_length(12):
            inside.append(torch.equal(model(text).logits, alone))
        return scores

    with swaa.prompt_length(3):
        answer = model.generate(tokens(41), logits_processor=LogitsProcessorList([ask]), **GREEDY)
    assert torch.equal(answer, expected)
    assert inside == [True] * 6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"prompt_lookup_num_tokens": 3},
    ],
)
def test_generate_inside_full_attention_is_the_model_before(options):
    model = sharp_model()
    expected = model.generate(tokens(41), **GREEDY)
    swaa.adapt(model, FULL_DECODE, quiet=True)
    with full_attention():
        assert torch.equal(model.generate(tokens(41), **GREEDY, **options), expected)
    assert not torch.equal(model.generate(tokens(41), **GREEDY), expected)


def test_a_cache_that_has_freed_keys_serves_no_full_attention():
    model = sharp_model(SLIDING)
    first = model.generate(tokens(41), return_dict_in_generate=True, **GREEDY)
    asked = torch.cat([first.sequences, tokens(5, seed=2)], 1)
    refused = pytest.raises(ValueError, match=r"freed keys that full_attention\(\) needs")
    with refused, full_attention():
        model.generate(asked, **cache_argument(cache_of(first)), **GREEDY)


def test_compiled_code_refuses_full_attention():
    model = sharp_model(SLIDING)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="cannot see full_attention"), full_attention():
        compiled(tokens(41), use_cache=False)


@pytest.mark.parametrize("beams", [1, 2])
def test_without_a_cache_the_call_is_known_all_the_same(beams):
    model, ids = sharp_model(MIXED_TAIL), tokens(41).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    options = {"attention_mask": mask, "num_beams": beams, **GREEDY}
    expected = model.generate(ids, **options)
    output = model.generate(ids, use_cache=False, return_dict_in_generate=True, **options)
    assert torch.equal(output.sequences, expected)
    assert cache_of(output) is None


@pytest.mark.parametrize("config", [FULL_DECODE, MIXED_TAIL], ids=["full", "tail"])
def test_a_model_drafts_for_itself_by_its_first_layers(config):
    model = sharp_model(config)
    expected = model.generate(tokens(41), **GREEDY)
    assert torch.equal(model.generate(tokens(41), assistant_early_exit=2, **GREEDY), expected)
    assert len(model.generate.make_cache().layers) == 4


def adapted_model(peft, config, *, off_within):
    """Two layers, with an adapter that prompts of at most ``off_within`` tokens do without."""
    from swaa.adapter import switch_by_length

    model = sharp_model(num_hidden_layers=2)
    lora = peft.LoraConfig(
        r=4, init_lora_weights=False, lora_alpha=64, target_modules=["q_proj", "v_proj"]
    )
    torch.manual_seed(0)
    peft.inject_adapter_in_model(lora, model)  # not by Transformers, which may ask for a newer PEFT
    swaa.adapt(model, config, quiet=True)
    return model, switch_by_length(model, off_within)


def test_two_threads_compute_what_each_computes_alone():
    peft = pytest.importorskip("peft", reason="peft is an optional extra")
    config = SWAAConfig(window=8, sink_tokens=3, full_decode=True, dense_tail=4)
    shared, switch = adapted_model(peft, config, off_within=11)
    other = sharp_model(SWAAConfig(window=6, full_decode=[1]), seed=5, num_hidden_layers=2)
    greedy = {**GREEDY, "max_new_tokens": 2}
    work = [  # of each thread: short prompts without the adapter, long ones with it
        [(shared, tokens(9)), (other, tokens(30, seed=2))],
        [(shared, tokens(33, seed=3)), (shared, tokens(20, seed=4))],
    ]
    alone = [[model.generate(ids, **greedy) for model, ids in calls] for calls in work]
    switch.remove()
    assert not torch.equal(shared.generate(tokens(9), **greedy), alone[0][0])
    switch.install(shared)
    wrong, interval = [], sys.getswitchinterval()

    def repeat(calls, expected):
        for turn in range(100):
            (model, ids), answer = calls[turn % 2], expected[turn % 2]
            if not torch.equal(model.generate(ids, **greedy), answer):
                wrong.append(ids.shape[1])

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(work, alone, strict=True)]
    sys.setswitchinterval(1e-4)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


@pytest.fixture(scope="module")
def switched():
    """A model with a switch, and its answers to a short and a long prompt: off, and on."""
    peft = pytest.importorskip("peft", reason="peft is an optional extra")
    model, switch = adapted_model(peft, SLIDING, off_within=11)
    switch.remove()
    on = [model.generate(tokens(n), **GREEDY) for n in (9, 33)]
    layers = [x for x in model.modules() if isinstance(x, peft.tuners.tuners_utils.BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    off = [model.generate(tokens(n), **GREEDY) for n in (9, 33)]
    for layer in layers:
        layer.enable_adapters(True)
    switch.install(model)
    assert not torch.equal(on[0], off[0])
    assert not torch.equal(on[1], off[1])
    return model, off[0], on[1]


def test_the_adapter_is_switched_in_compiled_code(switched):
    model, short, long = switched
    compiled = CompileConfig(backend="eager", fullgraph=True)
    compiled._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": compiled, "max_cache_len": 64}
    for count, answer in ((9, short), (33, long)):
        assert torch.equal(model.generate(tokens(count), **GREEDY, **options), answer)


@pytest.mark.parametrize("graph", [False, True])
def test_padding_does_not_count_for_the_switch(switched, graph):
    model, short, _ = switched
    ids = torch.cat([torch.zeros(2, 5, dtype=torch.long), tokens(9).repeat(2, 1)], 1)
    options = {
        "attention_mask": (ids > 0).long(),
        **({"custom_generate": graph_sample} if graph else {}),
    }
    answer = model.generate(ids, **GREEDY, **options)
    assert torch.equal(answer[:, 14:], short[:, 9:].repeat(2, 1))


def test_the_adapter_is_switched_in_direct_calls(switched):
    model, short, long = switched
    for count, answer in ((9, short), (33, long)):
        with torch.no_grad(), swaa.prompt_length(count):
            first = model(tokens(count)).logits[:, -1].argmax(-1)
        assert torch.equal(first, answer[:, count])
