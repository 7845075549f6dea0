"""Quantised weights: the attention does not touch them, so adapting must not either."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import swaa
from swaa import SWAAConfig
from tests.gguf_file import write_gguf
from tests.integrations.families import COMMON, tiny_model

IDS = torch.randint(2, 97, (1, 40), generator=torch.Generator().manual_seed(3))
WIDE = SWAAConfig(window=1000, sink_tokens=3)
NARROW = SWAAConfig(window=8, sink_tokens=3)


def check(model):
    with torch.no_grad():
        before = model(IDS).logits
        swaa.adapt(model, WIDE, quiet=True)
        torch.testing.assert_close(model(IDS).logits, before, atol=1e-4, rtol=1e-4)
        swaa.adapt(model, NARROW, quiet=True)
        assert (model(IDS).logits - before).abs().max() > 1e-2
        assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape[1] > IDS.shape[1]
        swaa.restore(model)
        assert torch.equal(model(IDS).logits, before)


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes")
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes(bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = tiny_model("llama", intermediate_size=2 * COMMON["hidden_size"])
    model.save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    check(AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization))


def test_gguf(tmp_path):
    pytest.importorskip("gguf", reason="needs the extra gguf")
    name = write_gguf(tmp_path / "tiny.gguf").name
    check(AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=name, dtype=torch.float32))
