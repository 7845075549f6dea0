"""What stands under vLLM's ``additional_config``: read, or refused; without vLLM."""

import re
from types import SimpleNamespace

import pytest

from swaa.config import SWAAConfig
from swaa.integrations.sglang.launch import serve
from swaa.integrations.sglang.settings import find as sglang_find
from swaa.integrations.vllm.settings import find, parse

KNOBS = {"window": 24, "sink_tokens": 4}


def engine(asked, carried=None):
    """What ``find`` looks at of a vLLM configuration."""
    model = SimpleNamespace(hf_config=SimpleNamespace(swaa=carried), runner_type="generate")
    return SimpleNamespace(additional_config=asked, model_config=model)


@pytest.mark.parametrize(
    "key",
    [
        *("recipe", "Recipe", "publish_generated", "swaa_config", "window", "sink_tokens"),
        *("sink-tokens", "full_layers", "full_decode", "dense_tail", "dense_tails"),
        *("sliding_window_size", "keep_first", "non_sliding_layers", "force_fa_decode"),
    ],
)
@pytest.mark.parametrize("beside", [{}, {"swaa": KNOBS}, {"other": 1}], ids=str)
def test_what_was_meant_for_swaa_and_nobody_reads_is_refused(key, beside):
    with pytest.raises(ValueError, match=f"holds '{key}' at its top, .*; put it under 'swaa'"):
        find(engine({**beside, key: 1}))


@pytest.mark.parametrize("key", ["swa", "SWAA", "swaaa", "sswaa"])
@pytest.mark.parametrize("beside", [{}, {"swaa": KNOBS}], ids=str)
def test_keys_that_are_nearly_ours_are_refused(key, beside):
    with pytest.raises(ValueError, match=f"holds '{key}'; did you mean 'swaa'"):
        find(engine({**beside, key: KNOBS}))


@pytest.mark.parametrize("asked", [{}, {"ascend_scheduler_config": {}, "swap": 1, 7: 2}, None])
def test_keys_of_others_are_left_alone(asked):
    assert find(engine(asked)) is None
    assert find(engine(asked, carried=KNOBS)).config == SWAAConfig(**KNOBS)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "'swaa' is None; expected a recipe name"),
        ([], r"'swaa' is \[\]; expected a recipe name"),
        (False, "'swaa' is False; expected a recipe name"),
        ("", "unknown recipe ''"),
        ({}, "the key 'window' is missing"),
        ({"sink_tokens": 4, "full_decode": True}, "the key 'window' is missing"),
        ({"window": None, "sink_tokens": 4}, "sink_tokens would do nothing: there is no window"),
        ({"window": [], "sink_tokens": 4}, r"window is \[\]; expected a whole number"),
        ({"window": False, "sink_tokens": 4}, "window is False"),
        ({"window": "", "sink_tokens": 4}, "window is ''"),
        ({"window": 2**70}, "window is 1180591620717411303424; expected at most"),
        ({"recipe": "full", "sink_tokens": 4}, "sink_tokens would do nothing"),
        ({"recipe": "full", "full_decode": [1]}, "full_decode would do nothing"),
        ({"recipe": "full", "publish_generated": True}, "publish_generated would do nothing"),
        ({"recipe": "balanced", "window": None}, "would do nothing: there is no window"),
        ({"recipe": None}, "expected the name of a recipe or a path, got None"),
        ({"recipe": {"keep_first": 4}}, "the paper's key 'sliding_window_size' is missing"),
        ({"keep_first": 4, "force_fa_decode": True}, "'sliding_window_size' is missing"),
        ({"sliding_window_size": [], "keep_first": 4}, r"window is \[\]"),
        ({"swaa_config": {"sliding_window_size": 8}}, "unknown keys swaa_config"),
        ({"config": KNOBS}, "unknown keys config"),
        ({"recipe": "fast", 7: 1}, "unknown keys 7; known are recipe, window"),
        ({**KNOBS, "version": True}, "format version True"),
        ({**KNOBS, "version": 1.0}, r"format version 1\.0"),
    ],
    ids=str,
)
def test_what_would_do_nothing_or_cannot_be_read_is_refused(value, reason):
    with pytest.raises(
        (TypeError, ValueError), match=f"^swaa: 'swaa' in additional_config: .*{reason}"
    ):
        find(engine({"swaa": value}))


@pytest.mark.parametrize("value", ["full", {"recipe": "full"}, {"window": None}])
def test_full_attention_by_name_is_no_mistake(value):
    assert parse(value).config == SWAAConfig(window=None)


HEADS = {**KNOBS, "full_decode": {"0": [1], "2": [0, 3]}}


def test_kv_heads_are_written_as_they_are_read():
    settings = parse(HEADS)
    assert parse(settings.to_dict()) == settings
    assert settings.fitted(3, kv_heads=4) == settings
    kept = [plan.decode_heads for plan in settings.plans(3, 4)]
    assert kept == [(1,), (), (0, 3)]


@pytest.mark.parametrize(
    ("layers", "heads", "left", "said"),
    [
        (2, 4, {"0": [1]}, "KV heads 2:0+3 left out, the model has 2 layers of 4 KV heads"),
        (3, 3, {"0": [1], "2": [0]}, "KV heads 2:3 left out, the model has 3 layers of 3 KV heads"),
        (1, 1, None, "full_decode holds KV heads 0:1,2:0+3; the model has 1 layers of 1 KV heads"),
    ],
)
def test_kv_heads_that_the_model_lacks(caplog, layers, heads, left, said):
    if left is None:
        with pytest.raises(ValueError, match=re.escape(said)):
            parse(HEADS).fitted(layers, kv_heads=heads)
        return
    fitted = parse(HEADS).fitted(layers, kv_heads=heads)
    assert fitted == parse({**HEADS, "full_decode": left})
    assert said in caplog.text


def test_sglang_refuses_kv_heads_with_one_line():
    model = SimpleNamespace(
        hf_config=SimpleNamespace(swaa=HEADS), hf_text_config=SimpleNamespace(num_hidden_layers=3)
    )
    said = r"names KV heads \(0:1,2:0\+3\), which SGLang does not take: name whole layers"
    with pytest.raises(ValueError, match=said):
        sglang_find(model)
    with pytest.raises(ValueError, match=said):
        serve(["folder"], parse(HEADS))
