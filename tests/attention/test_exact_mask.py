import pytest
import torch

from swaa.attention import swaa_attention
from swaa.testing import SHAPES, assert_sees_the_rule, keys_seen

BACKENDS = ["reference", "sdpa"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_rows_see_exactly_the_keys_of_the_rule(case, backend):
    assert_sees_the_rule(case, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_one_key_wider_is_noticed(backend):
    def attend(q, k, v, window):
        return swaa_attention(q, k, v, window=window, sink_tokens=2, backend=backend)

    sizes = {"batch": 1, "queries": 300, "keys": 300}
    seen = keys_seen(lambda q, k, v: attend(q, k, v, 128), **sizes)
    wider = keys_seen(lambda q, k, v: attend(q, k, v, 129), **sizes)
    assert (wider & ~seen).sum() == 300 - 130
