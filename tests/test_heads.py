"""Full decode in KV heads: the configuration, its plans, its flag."""

import argparse
import json

import pytest

from swaa.cli.options import add_config_options, config_from
from swaa.config import LayerPlan, SWAAConfig
from swaa.heads import HeadSelection

HEADS = {"14": [0], "16": [1, 0]}


def test_full_decode_names_kv_heads():
    config = SWAAConfig(window=8, full_decode=HEADS)
    same = SWAAConfig(window=8, full_decode={16: (0, 1, 0), 14: [0], 15: []})
    assert config == same
    assert hash(config) == hash(same)
    assert config.describe() == "window 8, 0 sinks, full decode in KV heads 14:0,16:0+1"
    assert config.to_dict()["full_decode"] == {"14": [0], "16": [0, 1]}
    assert SWAAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert SWAAConfig(window=8, full_decode={}).full_decode is False
    assert config.within(15).full_decode == HeadSelection(((14, (0,)),))
    assert config.within(3).full_decode is False
    assert not config.covers(7, 3)


def test_plans_of_kv_heads():
    config = SWAAConfig(window=8, sink_tokens=1, full_layers=[1], full_decode={0: [1], 1: [0]})
    plans = config.layers(3, [2, 2, 2])
    assert plans[0] == LayerPlan(window=8, sink_tokens=1, decode_heads=(1,))
    assert plans[1].full
    assert plans[2] == LayerPlan(window=8, sink_tokens=1)
    assert plans[0].needs_prompt_length
    assert not plans[0].keeps_all_keys
    kept, sliding = plans[0].parts(2)
    assert kept == (LayerPlan(window=8, sink_tokens=1, full_decode=True), (1,))
    assert sliding == (LayerPlan(window=8, sink_tokens=1), (0,))
    assert plans[2].parts(2) == ((plans[2], (0, 1)),)


def test_all_kv_heads_of_a_layer_are_the_layer():
    heads = SWAAConfig(window=8, full_decode={0: [0, 1, 2], 2: [0, 1, 2]}).layers(3, [3] * 3)
    assert heads == SWAAConfig(window=8, full_decode=[0, 2]).layers(3)


def test_kv_heads_need_their_number():
    with pytest.raises(ValueError, match="nobody said how many"):
        SWAAConfig(window=8, full_decode=HEADS).layers(20)


def test_kv_heads_beyond_the_model_are_dropped_with_one_warning():
    config = SWAAConfig(window=8, full_decode={0: [0, 2], 1: [5], 7: [0]})
    with pytest.warns(UserWarning, match="layers 7 and KV heads 0:2,1:5 dropped") as found:
        plans = config.layers(2, [2, 2])
    assert len(found) == 1
    assert [plan.decode_heads for plan in plans] == [(0,), ()]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"x": [0]}, TypeError, "names layer 'x'"),
        ({True: [0]}, TypeError, "names layer True"),
        ({"1": 0}, TypeError, "gives layer 1 0; expected a list"),
        ({"1": "0"}, TypeError, "gives layer 1 '0'; expected a list"),
        ({"1": [0.5]}, TypeError, "the KV head 0.5"),
        ({"1": [True]}, TypeError, "the KV head True"),
        ({"1": [-1]}, ValueError, "the KV head -1; heads start at 0"),
        ({-1: [0]}, ValueError, "layer indices start at 0"),
        ({"1": [0], 1: [1]}, ValueError, "names layer 1 twice"),
    ],
)
def test_wrong_kv_heads(value, error, message):
    with pytest.raises(error, match=message):
        SWAAConfig(window=8, full_decode=value)


def test_the_flag_takes_kv_heads():
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    args = parser.parse_args(["--recipe", "naive", "--full-decode", "16:1+0, 14:0"])
    assert config_from(args).full_decode == HeadSelection(((14, (0,)), (16, (0, 1))))
    args = parser.parse_args(["--recipe", "naive", "--full-decode", "16:1,16:0"])
    with pytest.raises(ValueError, match=r"named twice; write 16:0\+1"):
        config_from(args)
    args = parser.parse_args(["--recipe", "naive", "--full-decode", "16:1,14"])
    with pytest.raises(ValueError, match="unknown rule"):
        config_from(args)
