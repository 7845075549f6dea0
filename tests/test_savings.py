"""From which length on a recipe saves what it promises, against sums by hand."""

import pytest

from swaa.config import SWAAConfig
from swaa.plan import price
from swaa.savings import saves_from
from swaa.shapes import LayerShape, ModelShape


def shape(linear_weights):
    layer = LayerShape(kind="full", heads=4, kv_heads=2, head_dim=8, linear_weights=linear_weights)
    return ModelShape(model_type="tiny", layers=(layer,) * 2, head_weights=0)


def test_of_attention_alone_it_is_where_the_pairs_are_half():
    # A row sees 10 keys at most: 10 n - 45 pairs of n (n + 1) / 2.
    def kept(tokens):
        return (10 * tokens - 45) / (tokens * (tokens + 1) / 2)

    found = saves_from(shape(0), SWAAConfig(window=8, sink_tokens=2), 0.5)
    assert kept(found) <= 0.5 < kept(found - 1)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_with_linear_layers_it_is_the_first_such_prompt(share):
    config = SWAAConfig(window=8, sink_tokens=2, full_decode=True, dense_tail=4)
    found = saves_from(shape(1000), config, share)
    for tokens in (found - 1, found):
        ratio = price(shape(1000), config, prompt_length=tokens).ratios()["prefill_flops"]
        assert (ratio <= 1 - share) == (tokens == found)


def test_full_layers_may_save_it_nowhere():
    assert saves_from(shape(1000), SWAAConfig(window=8, full_layers=(0,)), 0.6) is None
    assert saves_from(shape(1000), SWAAConfig(window=8, full_layers=(0,)), 0.4) is not None
