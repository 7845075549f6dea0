"""swaa.load and swaa.adapted: one call to a model that slides, and exactly back afterwards."""

import pytest
import torch

import swaa
from swaa import SWAAConfig, models, shortcuts
from swaa.adaptation import adaptation_of
from tests.integrations.families import tiny_model

WIDE = SWAAConfig(window=16, sink_tokens=3)
NARROW = SWAAConfig(window=4, sink_tokens=1, full_layers=[1])
IDS = torch.randint(2, 97, (1, 40), generator=torch.Generator().manual_seed(3))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_load_gives_an_adapted_model_and_its_tokenizer(checkpoint, capsys):
    model, tokenizer = swaa.load(checkpoint, recipe=WIDE, device="cpu", dtype="float32")
    assert "adapted 4 of 4 layers: window 16, 3 sinks" in capsys.readouterr().out
    assert swaa.is_adapted(model)
    assert not model.training
    assert model.dtype == torch.float32
    ids = tokenizer("Who signed?", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] > ids.shape[1]


def test_load_hands_its_options_on(checkpoint, capsys):
    loaded = swaa.load(checkpoint, "naive", device="cpu", backend="reference", quiet=True)
    assert capsys.readouterr().out == ""
    adaptation = adaptation_of(loaded.model)
    assert (adaptation.backend, adaptation.requested) == ("reference", "reference")
    assert adaptation.config == swaa.load_recipe("naive")


def test_load_takes_the_recipe_that_the_checkpoint_carries(checkpoint, tmp_path):
    model, tokenizer = swaa.load(checkpoint, WIDE, device="cpu", quiet=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = swaa.load(str(tmp_path), device="cpu", quiet=True)
    assert adaptation_of(again.model).config == WIDE
    other = swaa.load(checkpoint, device="cpu", quiet=True)
    assert adaptation_of(other.model).config == swaa.load_recipe("selected")
    swaa.restore(other.model)
    with pytest.raises(ValueError, match="no configuration: pass a SWAAConfig or a recipe name"):
        swaa.adapt(other.model)


def test_a_wrong_recipe_shows_before_the_weights_are_loaded(monkeypatch):
    monkeypatch.setattr(shortcuts, "load_model", None)
    with pytest.raises(ValueError, match="did you mean 'fast'"):
        swaa.load("any", "fsat")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        swaa.load("./none", "fast")
    assert shortcuts.load_model is models.load_model


def test_adapted_restores_the_model_as_it_was(capsys):
    model = tiny_model("llama")
    before, attributes = logits(model), set(vars(model))
    with swaa.adapted(model, WIDE) as adaptation:
        assert capsys.readouterr().out.strip() == adaptation.summary
        assert adaptation_of(model) is adaptation
        assert not torch.equal(logits(model), before)
        model.generate(IDS, max_new_tokens=2)
    assert not swaa.is_adapted(model)
    assert adaptation_of(model) is None
    assert torch.equal(logits(model), before)
    assert set(vars(model)) == attributes
    assert not hasattr(model.config, "swaa")


def test_an_earlier_adaptation_comes_back_from_nested_blocks():
    model = tiny_model("llama")
    before = logits(model)
    earlier = swaa.adapt(model, WIDE, backend="reference", quiet=True)
    wide = logits(model)
    with swaa.adapted(model, NARROW, quiet=True):
        narrow = logits(model)
        assert not torch.equal(narrow, wide)
        with swaa.adapted(model, "full", quiet=True):
            torch.testing.assert_close(logits(model), before)
        assert torch.equal(logits(model), narrow)
    assert adaptation_of(model) is earlier
    assert model.config.swaa == WIDE.to_dict()
    assert torch.equal(logits(model), wide)
    swaa.restore(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("earlier", [None, WIDE], ids=["plain", "adapted"])
def test_errors_and_other_adaptations_inside_the_block_change_nothing(earlier):
    model = tiny_model("llama")
    if earlier is not None:
        swaa.adapt(model, earlier, quiet=True)
    before = logits(model)
    with pytest.raises(ZeroDivisionError), swaa.adapted(model, NARROW, quiet=True):
        raise ZeroDivisionError
    assert torch.equal(logits(model), before)
    with swaa.adapted(model, NARROW, quiet=True):
        swaa.restore(model)
    assert torch.equal(logits(model), before)
    with swaa.adapted(model, NARROW, quiet=True):
        swaa.adapt(model, {"window": 2}, quiet=True)
    assert torch.equal(logits(model), before)
    with pytest.raises(ValueError, match="unknown recipe"), swaa.adapted(model, "fsat"):
        pytest.fail("the block must not run")
    assert torch.equal(logits(model), before)
    assert swaa.is_adapted(model) == (earlier is not None)


def test_what_fails_after_the_model_was_adapted_is_undone(monkeypatch):
    def fails(*_):
        raise RuntimeError("no compiler")

    model = tiny_model("llama")
    before = logits(model)
    monkeypatch.setattr("swaa.adaptation.run_ahead", fails)
    with (
        pytest.raises(RuntimeError, match="no compiler"),
        swaa.adapted(model, NARROW, warm_up=True, quiet=True),
    ):
        pytest.fail("the block must not run")
    assert not swaa.is_adapted(model)
    assert torch.equal(logits(model), before)


def test_a_name_is_not_a_model():
    with (
        pytest.raises(TypeError, match="expected a loaded Transformers model, got str"),
        swaa.adapted("smollm2", "fast"),
    ):
        pytest.fail("the block must not run")
