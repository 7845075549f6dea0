"""Every causal type of the installed Transformers equals a dense mask, or is refused.

The judge is the type's own eager attention under a mask of plain loops, one sequence at a time and
without a cache. First the judge is judged: under the model's usual mask it equals the model.
"""

import functools
from pathlib import Path

import pytest
import torch
import transformers

import swaa
from swaa import SWAAConfig
from tests.integrations.conftest import EQUAL
from tests.integrations.families import NATIVE_WINDOW, layer_types
from tests.integrations.loop_model import DENSE, build_masks, loop_logits, rows_of
from tests.integrations.tiny_types import NOT_TRIED, TYPES, build, tiny_config

SUPPORT = Path(__file__).parents[2] / "docs/reference/support.md"
SERVED = set(SUPPORT.read_text("utf-8").partition(EQUAL)[2].partition("\n## ")[0].split("`")[1::2])
"""Types that equalled the mask when the page was last written."""
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24):
    SERVED -= {"codegen", "gptj"}  # which send their attention through AttentionInterface since
PROMPT, NEW, PAD = 30, 4, 5
CONFIG = SWAAConfig(window=8, sink_tokens=3, full_decode=[3], dense_tail=4)
CAUSAL = SWAAConfig(window=PROMPT + NEW)
IDS = torch.randint(2, 97, (2, PROMPT), generator=torch.Generator().manual_seed(5))
MASK = torch.ones_like(IDS)
MASK[1, :PAD] = 0
IDS[1, :PAD] = 0


def judged(model, ids, config, prompt):
    """Logits of one sequence ``[1, tokens]`` by the judge."""
    total = ids.shape[1]
    rows = rows_of(prompt, config.dense_tail, total)
    masks = build_masks(config, layer_types(model), [0], total, rows, native_window=NATIVE_WINDOW)
    return loop_logits(model, ids, masks, None, implementation=DENSE)


def logits_of(model, ids, **options):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **options).logits


def refusal(model):
    try:
        swaa.adapt(model, CONFIG, quiet=True)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # theirs
@pytest.mark.parametrize("name", TYPES)
def test_a_type_equals_the_dense_mask_or_is_refused(name, record_property):
    if name in NOT_TRIED:
        pytest.skip(NOT_TRIED[name])
    model = build(tiny_config(name))
    reason = refusal(model)
    if reason is not None:
        assert "meta device" not in reason, "name what makes it small, or why it cannot be"
        assert name not in SERVED, f"was served, and now: {reason}"
        record_property("refused", reason.removeprefix(type(model).__name__).lstrip(": "))
        return
    output = model.generate(
        input_ids=IDS, attention_mask=MASK, max_new_tokens=NEW, min_new_tokens=NEW,
        do_sample=False, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    generated = torch.stack(output.logits, dim=1)
    with swaa.prompt_length(PROMPT):
        whole = logits_of(model, output.sequences[:1])
    swaa.restore(model)
    usual = logits_of(model, IDS[:1])
    tolerance = 1e-5 * max(1.0, usual.abs().max().item())
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=tolerance)
    close(judged(model, IDS[:1], CAUSAL, PROMPT), usual)
    expected = judged(model, output.sequences[:1], CONFIG, PROMPT)
    assert (expected[:, :PROMPT] - usual).abs().max() > 30 * tolerance, "the mask changes nothing"
    close(whole, expected)
    close(generated[:1], expected[:, PROMPT - 1 : -1])
    padded = judged(model, output.sequences[1:, PAD:], CONFIG, PROMPT - PAD)
    close(generated[1:], padded[:, PROMPT - PAD - 1 : -1])
