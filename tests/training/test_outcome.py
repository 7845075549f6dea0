"""What a training leaves: it carries its recipe, and the adapter is off where it is not needed."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import swaa
from swaa.adapter import put_adapter_on, read_adapter
from swaa.config import SWAAConfig
from swaa.models import load_model
from swaa.training.run import train
from swaa.training.settings import TrainingSettings
from tests.training.conftest import CONFIG

TRAINING = TrainingSettings(learning_rate=0.02, max_steps=3, accumulate=2, warmup=0.0)


@pytest.fixture(scope="module")
def out(checkpoint, tmp_path_factory):
    """A finished training."""
    from tests.training.conftest import conversations, write_lines

    folder = tmp_path_factory.mktemp("outcome")
    data = write_lines(folder / "data.jsonl", conversations())

    def load():
        return load_model(str(checkpoint), dtype="float32", device="cpu")

    path = folder / "out"
    train(load(), CONFIG, data, path, TRAINING, name=str(checkpoint), reload=load)
    return path


def _logits(model, ids, prompt):
    with torch.no_grad(), swaa.prompt_length(prompt):
        return model(ids).logits


def _close(ours, theirs):
    return torch.allclose(ours, theirs, atol=1e-4)


IDS = torch.arange(3, 73)[None]
LONG, SHORT = 60, 18


def test_the_merged_checkpoint_needs_no_flag(out, load):
    model = AutoModelForCausalLM.from_pretrained(out / "merged")
    assert SWAAConfig.from_dict(model.config.swaa) == CONFIG
    before = load().model
    with torch.no_grad():
        assert not torch.allclose(model(IDS).logits, before(IDS).logits, atol=1e-2)
    assert "adapted 3 of 4 layers" in swaa.adapt(model, quiet=True).summary
    values = json.loads((out / "merged" / "config.json").read_text())
    assert values["swaa"] == CONFIG.to_dict()
    assert values.get("use_cache", True), "a setting of training was left in the checkpoint"
    assert SWAAConfig.load(out / "merged" / "swaa.json") == CONFIG


def test_a_server_finds_the_recipe(out):
    """As vLLM's plugin reads a checkpoint: see swaa.integrations.vllm.settings.find."""
    from types import SimpleNamespace

    from swaa.integrations.vllm.settings import find

    config = AutoModelForCausalLM.from_pretrained(out / "merged").config
    engine = SimpleNamespace(additional_config=None, model_config=SimpleNamespace(hf_config=config))
    found = find(engine)
    assert found is not None
    assert found.config == CONFIG


def test_an_adapter_needs_its_base_in_one_place(out):
    with pytest.raises(ValueError, match="cannot be put on a model spread by a device map; name"):
        load_model(str(out / "adapter"), device_map="auto")


def test_the_adapter_does_what_the_merged_checkpoint_does(out):
    adapter = load_model(str(out / "adapter"), dtype="float32", device="cpu")
    merged = load_model(str(out / "merged"), dtype="float32", device="cpu")
    assert adapter.name == "adapter"
    assert "adapted 3 of 4 layers" in swaa.adapt(adapter.model, quiet=True).summary
    swaa.adapt(merged.model, quiet=True)
    found, wanted = (_logits(x.model, IDS, LONG) for x in (adapter, merged))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_the_adapter_is_off_for_prompts_that_fit(out, load):
    adapter = load_model(str(out / "adapter"), dtype="float32", device="cpu").model
    base = load().model
    swaa.adapt(adapter, quiet=True)
    swaa.adapt(base, CONFIG, quiet=True)
    assert read_adapter(str(out / "adapter")).off_within == 18
    for prompt, same in ((SHORT, True), (SHORT + 1, False), (LONG, False), (SHORT, True)):
        found, wanted = (_logits(model, IDS, prompt) for model in (adapter, base))
        assert _close(found, wanted) == same, prompt
    with torch.no_grad(), swaa.attention_rows(torch.arange(70)[None] >= LONG):
        adapter(IDS)  # rows without a prompt length: the adapter is on
    assert not _close(_logits(adapter, IDS, LONG), _logits(base, IDS, LONG))


def test_generate_decides_by_the_longest_prompt_without_padding(out, load):
    adapter = load_model(str(out / "adapter"), dtype="float32", device="cpu").model
    base = load().model
    swaa.adapt(adapter, quiet=True)
    swaa.adapt(base, CONFIG, quiet=True)
    ids = IDS[:, :30].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[:, :12] = 0  # 18 real tokens
    options = {"max_new_tokens": 6, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}

    def run(model):
        return torch.stack(model.generate(ids, attention_mask=mask, **options).logits)

    assert _close(run(adapter), run(base))
    mask[1, 11] = 1
    assert not _close(run(adapter), run(base))


def test_the_adapter_may_stay_on(checkpoint, load, data, tmp_path):
    out = tmp_path / "always"
    done = train(
        load(), CONFIG, data, out, TRAINING, name=str(checkpoint), reload=None, adapter_always=True
    )
    assert done.merged is None
    assert read_adapter(str(out / "adapter")).off_within is None
    adapter = load_model(str(out / "adapter"), dtype="float32", device="cpu").model
    swaa.adapt(adapter, quiet=True)
    base = load().model
    swaa.adapt(base, CONFIG, quiet=True)
    assert not _close(_logits(adapter, IDS, SHORT), _logits(base, IDS, SHORT))


def test_other_folders_hold_no_adapter_of_ours(checkpoint, load, out, monkeypatch):
    assert read_adapter(str(checkpoint)) is None
    assert read_adapter("some/hub-name") is None
    with pytest.raises(ValueError, match="holds no adapter of swaa train"):
        put_adapter_on(load().model, checkpoint)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="is an adapter and needs peft; run: pip install"):
        put_adapter_on(load().model, out / "adapter")
