"""What settings cost by arithmetic, against plan and against what runs wrote."""

import json

import pytest

from swaa.config import SWAAConfig
from swaa.evaluation import published
from swaa.plan import price
from swaa.report.cost import SHAPES, shares_of
from swaa.shapes import shape_of
from tests.documents import ROOT


def test_the_known_model_has_the_sizes_of_the_published_comparison():
    ours = SHAPES[published.MODEL.removesuffix(".gguf")]
    assert ours.layers == shape_of(published.SHAPE).layers


def test_shares_are_those_that_a_tuning_wrote():
    checked = 0
    for path in (ROOT / "results/tune").glob("*.json"):
        content = json.loads(path.read_text("utf-8"))
        model, length = content["config"]["model"], content["config"]["length"]
        if model.removesuffix(".gguf") not in SHAPES:
            continue
        for row in content["rows"]:
            shares = shares_of(model, SWAAConfig.from_dict(row["swaa"]), length)
            assert shares["flops_share"] == pytest.approx(row["prefill_flops"], abs=5.1e-5)
            assert shares["kv_share"] == pytest.approx(row["kv_bytes"], abs=5.1e-5)
            checked += 1
    assert checked > 0


@pytest.mark.parametrize(
    "config",
    [
        SWAAConfig(window=None),
        SWAAConfig(window=64, sink_tokens=4),
        SWAAConfig(window=64, sink_tokens=4, full_decode=True, dense_tail=8),
        SWAAConfig(window=5000, dense_tail=8),
    ],
    ids=lambda config: config.describe(),
)
def test_where_all_layers_do_the_same_no_size_matters(config):
    known = price(SHAPES["SmolLM2-135M-Instruct.Q4_1"], config, prompt_length=1000).ratios()
    shares = shares_of("another model", config, 1000)
    assert shares["keys_share"] == pytest.approx(known["prefill_attention_flops"])
    assert shares["kv_share"] == pytest.approx(known["kv_steady_bytes"])
    assert shares.get("flops_share") == (1.0 if config.window is None else None)


def test_where_layers_differ_an_unknown_model_has_no_price():
    for config in (
        SWAAConfig(window=64, full_layers="odd"),
        SWAAConfig(window=64, full_decode="last:1/2"),
    ):
        assert shares_of("another model", config, 1000) is None
        assert shares_of("SmolLM2-135M-Instruct.Q4_1.gguf", config, 1000) is not None
