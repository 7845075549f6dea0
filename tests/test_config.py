import dataclasses
import json

import pytest

from swaa.config import LayerPlan, SWAAConfig

CONFIGS = {
    "full": SWAAConfig(window=None),
    "window": SWAAConfig(window=1),
    "rules": SWAAConfig(window=8, sink_tokens=4, full_layers="odd", full_decode="last:1/2"),
    "lists": SWAAConfig(window=8, full_layers=(1, 3), full_decode=(0,), dense_tail=2),
    "full decode": SWAAConfig(window=8, full_decode=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_json_round_trip(config, tmp_path):
    assert SWAAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.save(tmp_path / "config.json")
    assert SWAAConfig.load(tmp_path / "config.json") == config
    assert config.to_dict()["version"] == 1


def test_options_are_frozen_keyword_only_and_hashable():
    config = SWAAConfig(window=8, full_layers=[3, 1])
    assert config.full_layers == (1, 3)
    assert hash(config) == hash(SWAAConfig(window=8, full_layers=(1, 3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.window = 9
    with pytest.raises(TypeError):
        SWAAConfig(8)


def test_an_empty_list_of_full_decode_layers_is_no_full_decode():
    assert SWAAConfig(window=8, full_decode=[]) == SWAAConfig(window=8)


def test_layers_turn_options_into_numbers():
    config = SWAAConfig(
        window=8, sink_tokens=2, full_layers="even", full_decode=(0, 1), dense_tail=3
    )
    full = LayerPlan(window=None)
    sliding = LayerPlan(window=8, sink_tokens=2, dense_tail=3)
    decode = dataclasses.replace(sliding, full_decode=True)
    assert config.layers(4) == (full, decode, full, sliding)
    assert SWAAConfig(window=None).layers(2) == (full, full)


def test_layers_beyond_the_last_are_dropped_with_a_warning_for_each_option():
    config = SWAAConfig(window=8, full_layers=(1, 9), full_decode=(0, 8))
    with pytest.warns(UserWarning, match="dropped") as caught:
        plans = config.layers(2)
    assert [str(warning.message).split(":")[0] for warning in caught] == [
        "full_layers",
        "full_decode",
    ]
    assert [plan.full for plan in plans] == [False, True]
    assert caught[0].filename == __file__


PLANS = [
    (LayerPlan(window=None), (True, True, False), (None, None)),
    (LayerPlan(window=8), (False, False, False), (None, None)),
    (LayerPlan(window=8, full_decode=True), (False, True, True), (10, None)),
    (LayerPlan(window=8, dense_tail=4), (False, False, True), (6, 10)),
    (LayerPlan(window=8, full_decode=True, dense_tail=4), (False, True, True), (6, None)),
    (LayerPlan(window=8, dense_tail=40), (False, False, True), (0, 10)),
]


@pytest.mark.parametrize(("plan", "properties", "rows"), PLANS, ids=lambda value: str(value)[:60])
def test_what_a_plan_says_of_keys_and_rows(plan, properties, rows):
    assert (plan.full, plan.keeps_all_keys, plan.needs_prompt_length) == properties
    assert plan.full_rows(10) == rows


def test_description_names_what_is_active():
    assert CONFIGS["full"].describe() == "full attention"
    assert CONFIGS["full decode"].describe() == "window 8, 0 sinks, full decode"
    assert CONFIGS["lists"].describe() == (
        "window 8, 0 sinks, full layers 1,3, full decode in layers 0, dense tail 2"
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "window is 0; expected at least 1 keys; None leaves every"),
        ({"window": -4}, ValueError, "window is -4"),
        ({"window": "2048"}, TypeError, "window is '2048'; expected a whole number of keys"),
        ({"window": True}, TypeError, "window is True; expected a whole number"),
        ({"sink_tokens": -1}, ValueError, "sink_tokens is -1; expected at least 0"),
        ({"sink_tokens": None}, TypeError, "sink_tokens is None"),
        ({"dense_tail": -1}, ValueError, "dense_tail is -1; expected at least 0"),
        ({"dense_tail": 1.5}, TypeError, r"dense_tail is 1\.5; expected a whole"),
        ({"window": 2**30 + 1}, ValueError, "window is 1073741825; expected at most 1073741824"),
        ({"window": 2**70}, ValueError, "window is 1180591620717411303424; expected at most"),
        ({"window": 10**5000}, ValueError, "window is a very large int; expected at most"),
        ({"window": -(10**5000)}, ValueError, "window is a very large int; expected at least 1"),
        ({"sink_tokens": 2**31}, ValueError, "sink_tokens is 2147483648; expected at m"),
        ({"dense_tail": 2**70}, ValueError, "dense_tail is .*; expected at most"),
        ({"window": None, "sink_tokens": 4}, ValueError, "sink_tokens would do nothing: there is"),
        (
            {"window": None, "full_layers": "odd", "full_decode": [1], "dense_tail": 1},
            ValueError,
            "full_layers, full_decode, dense_tail would do nothing",
        ),
        ({"full_layers": ["1"]}, TypeError, "full_layers holds '1', a str"),
        ({"full_decode": ["1"]}, TypeError, "full_decode holds '1', a str"),
        ({"full_decode": None}, TypeError, "full_decode is None; expected True, Fal"),
        (
            {"window": 8, "full_decode": "al"},
            ValueError,
            "full_decode: unknown rule 'al'; choose from True, False, KV heads by layer",
        ),
        ({"selected_keys": 64}, ValueError, "one does nothing without the other; give selected_l"),
        ({"selected_layers": [1]}, ValueError, "does nothing without the other; give selected_k"),
        ({"selected_layers": [1], "selected_keys": 9}, ValueError, "selected in blocks of 64"),
        ({"selected_layers": [1], "selected_keys": -1}, ValueError, "expected at least 0"),
        ({"full_decode": True, "decode_keys": 24}, ValueError, "in pages of 16: give a multiple"),
        ({"full_decode": True, "decode_keys": -16}, ValueError, "expected at least 0"),
        ({"decode_keys": 16}, ValueError, "no generated token sees every key: give full_decode"),
        ({"window": None, "decode_keys": 16}, ValueError, "decode_keys would do nothing"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value)[:60],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        SWAAConfig(**{"window": 8, **options})


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"version": 2, "window": 8}, ValueError, "format version 2; this swaa reads version 1: u"),
        ({"window": 8, "sinks": 4}, ValueError, "unknown keys sinks; known are window, sink_tok"),
        ({"version": 0, "window": 8}, ValueError, "there is no such version"),
        ({"version": True, "window": 8}, ValueError, "format version True; .* no such version"),
        ({"version": 1.0, "window": 8}, ValueError, r"format version 1\.0; .* no such version"),
        ({"version": "1", "window": 8}, ValueError, "format version '1'"),
        ({"window": [], "sink_tokens": 4}, TypeError, r"window is \[\]; expected a whole number"),
        ({"window": False}, TypeError, "window is False"),
        ({"window": ""}, TypeError, "window is ''"),
        ({"window": None, "dense_tail": 2}, ValueError, "dense_tail would do nothing"),
        (dict.fromkeys(map(str, range(9)), 1), ValueError, r"unknown keys 0, 1, 2, 3, 4 \.\.\.; k"),
        ({"a" * 10**6: 1}, ValueError, r"unknown keys a{50,80}\.\.\.a{50,80}; known"),
        ({"keep_first": 4}, ValueError, "the paper's key 'sliding_window_size' is missing"),
        ({"sliding_window_size": [], "keep_first": 4}, TypeError, r"window is \[\]"),
        ({"sliding_window_size": False}, TypeError, "window is False"),
        ({"sliding_window_size": "", "keep_first": 4}, TypeError, "window is ''"),
        ({"sliding_window_size": None, "keep_first": 4}, ValueError, "sink_tokens would do noth"),
        ({"sliding_window_size": 0, "non_sliding_layers": [1]}, ValueError, "full_layers would"),
        ({"sliding_window_size": None, "force_fa_decode": True}, ValueError, "full_decode would"),
        ({"version": 1}, ValueError, "the key 'window' is missing; give a number of keys, or null"),
        ([1], TypeError, r"expected a JSON object with the key 'window', got \[1\]"),
        ({"keep_first": 4, "k": 1}, ValueError, "unknown keys k next to the paper's sliding"),
        ({"sliding_window_size": 8, "keep_first": -1}, ValueError, "sink_tokens is -1"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value)[:60],
)
def test_wrong_json_is_refused(values, error, message):
    with pytest.raises(error, match=message):
        SWAAConfig.from_dict(values)


AUTHORS = {
    "sliding_window_size": 2000,
    "keep_first": 100,
    "force_fa_decode": True,
    "non_sliding_layers": [1, 3, 5],
}


def test_the_papers_own_keys_are_read():
    config = SWAAConfig(window=2000, sink_tokens=100, full_layers=(1, 3, 5), full_decode=True)
    assert SWAAConfig.from_dict(AUTHORS) == config
    some = SWAAConfig.from_dict(AUTHORS | {"force_fa_decode": [0, 2]})
    assert some.full_decode == (0, 2)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"config": {"window": 8}, "sink_tokens": 4}, "holds sink_tokens next to 'config', where"),
        ([{"swaa_config": AUTHORS, "keep_first": 4}], "holds keep_first next to 'swaa_config'"),
        ({"recipe": "fast", "window": 8}, "unknown keys recipe"),
        ({"swaa": {"window": 8}}, "unknown keys swaa"),
    ],
    ids=str,
)
def test_knobs_of_a_file_that_nobody_would_read_are_refused(tmp_path, written, message):
    (tmp_path / "recipe.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=message):
        SWAAConfig.load(tmp_path / "recipe.json")


def test_a_settings_list_may_say_full_decode_of_full_attention(tmp_path):
    full = {"sliding_window_size": None, "keep_first": 0, "force_fa_decode": True}
    (tmp_path / "list.json").write_text(
        json.dumps([{"swaa_config": full}, {"swaa_config": AUTHORS}])
    )
    assert SWAAConfig.load(f"{tmp_path}/list.json#0") == SWAAConfig(window=None)
    assert SWAAConfig.load(f"{tmp_path}/list.json#1").full_decode is True


@pytest.mark.parametrize("window", [None, 0])
def test_the_papers_way_to_say_full_attention(window):
    values = {"sliding_window_size": window, "keep_first": 0, "force_fa_decode": False}
    assert SWAAConfig.from_dict(values | {"non_sliding_layers": []}) == SWAAConfig(window=None)


@pytest.mark.parametrize(("word", "decode"), [("true", True), ("false", False)])
def test_the_papers_speed_settings_hold_words(word, decode):
    values = {"sliding_window_size": 8, "force_fa_decode": word, "non_sliding_layers": ""}
    assert SWAAConfig.from_dict(values) == SWAAConfig(window=8, full_decode=decode)


def test_one_of_the_papers_settings_is_named_by_index(tmp_path):
    other = AUTHORS | {"sliding_window_size": 8}
    settings = [{"swaa_config": values, "model_list": ["m"]} for values in (AUTHORS, other)]
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings))
    assert SWAAConfig.load(f"{path}#1").window == 8
    with pytest.raises(ValueError, match=r"holds 2 settings; name one by '.*settings\.json#0'"):
        SWAAConfig.load(path)
    with pytest.raises(ValueError, match="holds 2 settings; there is no '#2'"):
        SWAAConfig.load(f"{path}#2")
    path.write_text(json.dumps(settings[:1]))
    assert SWAAConfig.load(path).window == 2000


def test_a_file_that_is_no_configuration_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        SWAAConfig.load(path)
    path.write_text('{"window": 0}')
    with pytest.raises(ValueError, match=r"broken\.json: window is 0"):
        SWAAConfig.load(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        SWAAConfig.load(tmp_path / "missing.json")


def test_an_index_into_a_single_configuration_is_refused(tmp_path):
    path = tmp_path / "one.json"
    SWAAConfig(window=8).save(path)
    with pytest.raises(ValueError, match="leave out '#3'"):
        SWAAConfig.load(f"{path}#3")


def test_selected_layers_decode_in_full_and_full_layers_stay_full():
    config = SWAAConfig(
        window=8, full_layers=[0], dense_tail=2, selected_layers="first:1/2", selected_keys=128
    )
    plans = config.layers(4)
    assert plans[0] == LayerPlan(window=None)
    assert plans[1] == LayerPlan(window=8, full_decode=True, dense_tail=2, selected_keys=128)
    assert plans[2] == plans[3] == LayerPlan(window=8, dense_tail=2)
    assert plans[1].keeps_all_keys
    assert plans[1].full_rows(100) == (98, None)


def test_a_configuration_without_selected_layers_is_written_as_before():
    assert not {"selected_layers", "selected_keys"} & SWAAConfig(window=8).to_dict().keys()
    config = SWAAConfig(window=8, selected_layers="all", selected_keys=64)
    assert config.to_dict()["selected_layers"] == "all"
    assert SWAAConfig.from_dict(config.to_dict()) == config
    assert config.describe() == "window 8, 0 sinks, 64 selected keys in layers all"


def test_selected_layers_that_a_model_lacks_go_with_their_keys():
    config = SWAAConfig(window=8, selected_layers=[1, 9], selected_keys=64)
    assert config.within(4).selected_layers == (1,)
    assert config.within(1) == SWAAConfig(window=8)


def test_rows_that_choose_are_those_that_are_full():
    config = SWAAConfig(
        window=8, sink_tokens=2, full_layers=[0], full_decode=[1], dense_tail=3, decode_keys=64
    )
    plans = config.layers(3)
    assert plans[0] == LayerPlan(window=None, sink_tokens=2, decode_keys=64, decode_window=8)
    assert plans[1].decode_keys == 64
    assert plans[2].decode_keys == 0
    assert plans[0].full
    assert plans[0].needs_prompt_length
    assert SWAAConfig.from_dict(config.to_dict()) == config
    assert config.describe().endswith("dense tail 3, 64 keys chosen in decoding")
    assert "decode_keys" not in dataclasses.replace(config, decode_keys=0).to_dict()
    lost = SWAAConfig(window=8, full_decode=[7], decode_keys=64).within(4)
    assert lost == SWAAConfig(window=8)


def test_window_and_sinks_cover_what_no_row_slides_past():
    sliding = SWAAConfig(window=8, sink_tokens=2)
    assert sliding.covers(10)
    assert not sliding.covers(11)
    assert not sliding.covers(9, 2)
    assert SWAAConfig(window=8, sink_tokens=2, full_decode=True).covers(9, 2)
    assert not SWAAConfig(window=8, sink_tokens=2, full_decode=[0]).covers(9, 2)
    assert not SWAAConfig(window=None).covers(1)
    assert sliding.idle("it") == (
        "nothing slides: window 8 and 2 sinks cover it; it is full attention"
    )
