"""Wrappers of text models that see pictures: their text layers take a recipe."""

from types import SimpleNamespace

import pytest

from swaa.config import SWAAConfig
from tests.vllm import wrappers
from tests.vllm.engine import BLOCK, CHUNK, Engine, prompts_of
from tests.vllm.wrappers import around_a_picture, request, without_marks

# A rule counts the text model's layers: of the tower's two, half would be one.
KNOBS = {"window": 24, "sink_tokens": 4}
CASES = {
    "qwen2_5_vl": (
        {**KNOBS, "full_layers": [1], "full_decode": [2], "dense_tail": 8},
        SWAAConfig(**KNOBS, full_layers=(1,), full_decode=(2,), dense_tail=8),
    ),
    "qwen3_vl": (
        {**KNOBS, "full_layers": "middle:1/2"},
        SWAAConfig(**KNOBS, full_layers=(1, 2)),
    ),
}
# Few blocks, so that requests are preempted.
FEW = {"num_gpu_blocks_override": 44, "max_model_len": 512, "watermark": 0.0}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """An engine and its judge; one checkpoint carries its configuration beside the text model's."""
    swaa, config = CASES[request.param]
    carried = swaa if request.param == "qwen3_vl" else None
    folder = tmp_path_factory.mktemp(request.param)
    wrappers.save_wrapper(folder, request.param, swaa=carried)
    with pytest.MonkeyPatch.context() as patch:
        wrappers.without_a_processor(patch)
        with Engine(str(folder), None if carried else swaa, **wrappers.OPTIONS, **FEW) as engine:
            yield engine, wrappers.WrapperJudge(str(folder), config)


def test_text_and_pictures_in_chunks_next_to_one_another(engine, judge):
    before, after, short, *texts = map(without_marks, prompts_of(45, 90, 5, 129, CHUNK + 1))
    prompt, early = around_a_picture(before, after), around_a_picture(short, texts[0])
    assert len(before) < CHUNK < len(before) + wrappers.TOKENS  # a chunk ends within the picture
    outputs = engine.in_turn([texts[0], request(prompt, 1), texts[1], request(early, 2)])
    answers = [output.outputs[0] for output in outputs]
    judge.check(texts[0], answers[0])
    judge.seeing(1).check(prompt, answers[1])
    judge.check(texts[1], answers[2])
    judge.seeing(2).check(early, answers[3])
    with pytest.raises(AssertionError):
        judge.seeing(2).check(prompt, answers[1])


def test_layers_of_the_tower_are_left_alone(engine):
    vllm_config = engine.llm.llm_engine.vllm_config
    known = vllm_config.compilation_config.static_forward_context
    names = [f"language_model.model.layers.{n}.self_attn.attn" for n in range(4)]
    assert [name for name, layer in known.items() if hasattr(layer, "swaa")] == names
    assert list(known) == names


def test_prefix_cache_tells_pictures_apart(engine, judge):
    before, after, more = prompts_of(40, 90, 60, seed=5)
    prompt = around_a_picture(before, after)
    longer = [*prompt, *without_marks(more)]
    shown = [(prompt, 1), (prompt, 1), (longer, 1), (prompt, 2), (without_marks(before) * 3, None)]
    hits = []
    for tokens, picture in shown:
        given = tokens if picture is None else request(tokens, picture)
        (output,) = engine.in_turn([given])
        hits.append(output.num_cached_tokens)
        judge.seeing(picture).check(tokens, output.outputs[0])
    reusable = (len(prompt) - max(1, judge.config.dense_tail)) // BLOCK * BLOCK
    assert hits[:2] == [0, reusable]
    assert hits[2] > 0
    assert hits[3] <= len(before) // BLOCK * BLOCK  # another picture: only the text before it
    assert hits[4] <= len(before) // BLOCK * BLOCK


def test_several_answers_to_one_prompt(engine, judge):
    prompt = without_marks(prompts_of(140, seed=3)[0])
    output = engine.run([prompt], n=3, temperature=1.0)[0]
    for answer in output.outputs:
        judge.check(prompt, answer, greedy=False)


def test_preempted_requests_answer_as_if_alone(engine, judge):
    before, after, *texts = map(without_marks, prompts_of(50, 60, 150, 180, 210, seed=11))
    prompt, already = around_a_picture(before, after), engine.preemptions
    outputs = engine.in_turn([*texts, request(prompt, 3)], max_tokens=150)
    assert engine.preemptions > already
    for text, output in zip(texts, outputs, strict=False):
        judge.check(text, output.outputs[0])
    judge.seeing(3).check(prompt, outputs[-1].outputs[0])


def test_pictures_whose_tokens_see_later_ones_are_refused():
    from swaa.integrations.vllm import support

    model = SimpleNamespace(
        **dict.fromkeys(("is_encoder_decoder", "use_mla", "is_hybrid", "is_attention_free"), False),
        architectures=["Gemma3ForConditionalGeneration"],
        runner_type="generate",
        is_multimodal_model=True,
        is_mm_prefix_lm=True,
    )
    (said,) = support._model_reasons(model)
    assert said.startswith("Gemma3ForConditionalGeneration lets the tokens of a picture")
    model.is_mm_prefix_lm = False
    assert not list(support._model_reasons(model))
