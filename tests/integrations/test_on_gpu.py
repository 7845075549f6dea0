"""Adapted models on a GPU: the kernels agree with eager attention, and no square mask is made."""

import pytest
import torch

import swaa
from swaa import SWAAConfig
from swaa.testing import assert_close_to_oracle
from tests.integrations.families import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CONFIG = SWAAConfig(window=64, sink_tokens=10, full_layers=[1], full_decode=[0, 2], dense_tail=9)
WIDE = {"hidden_size": 256, "head_dim": 64, "max_position_embeddings": 1 << 16}


def prompt(tokens, padding=0):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 97, (2, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    return ids.cuda(), mask.cuda()


def scored(model, ids, mask, new, **options):
    """Logits of the forced continuation ``new``, step by step through generate's own path."""
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return output.sequences, torch.stack(output.logits, dim=1)


def teacher_forced(model, sequences, mask, prompt_length):
    mask = torch.nn.functional.pad(mask, (0, sequences.shape[1] - mask.shape[1]), value=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), swaa.prompt_length(prompt_length):
        logits = model(sequences, attention_mask=mask, position_ids=positions).logits
    return logits[:, prompt_length - 1 : -1]


@pytest.mark.parametrize("padding", [0, 130], ids=["even", "padded"])
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 100}], ids=["whole", "chunks"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_generate_is_as_exact_as_eager(backend, family, options, padding):
    ids, mask = prompt(501, padding)
    model = tiny_model(family, **WIDE).cuda().bfloat16()
    swaa.adapt(model, CONFIG, backend=backend, quiet=True)
    sequences, actual = scored(model, ids, mask, 6, **options)
    swaa.adapt(model, CONFIG, backend="reference", quiet=True)
    eager = teacher_forced(model, sequences, mask, ids.shape[1])
    exact = model.double()
    swaa.adapt(exact, CONFIG, backend="reference", quiet=True)
    oracle = teacher_forced(exact, sequences, mask, ids.shape[1])
    assert_close_to_oracle(actual.to(torch.bfloat16), oracle, eager, name="logits")


def test_no_square_mask_is_ever_made():
    model = tiny_model("llama", **WIDE).cuda().bfloat16()
    ids, mask = prompt(32_768)
    swaa.adapt(model, CONFIG, quiet=True)
    model.generate(input_ids=ids[:1, :512], max_new_tokens=1)  # compile
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 32_768**2 / 2  # half a byte per entry of one square mask


def test_compiled_decoding_with_a_static_cache():
    ids, mask = prompt(301, 40)
    model = tiny_model("llama", **WIDE).cuda().bfloat16()
    swaa.adapt(model, CONFIG, quiet=True)
    plain, expected = scored(model, ids, mask, 6)
    compiled, actual = scored(model, ids, mask, 6, cache_implementation="static")
    same = (plain == compiled).all(0).cumprod(0).sum() - ids.shape[1]
    torch.testing.assert_close(actual[:, :same], expected[:, :same], atol=5e-2, rtol=5e-2)
    assert same > 0
