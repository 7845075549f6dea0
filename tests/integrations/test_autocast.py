"""Under autocast an adapted model computes in the dtype that PyTorch's own attention would."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import swaa
from swaa import SWAAConfig
from tests.checkpoint import save_checkpoint
from tests.integrations.families import adapted, tiny_model
from tests.training.conftest import UPSTREAM

CONFIG = SWAAConfig(window=8, sink_tokens=3)
IDS = torch.randint(2, 97, (2, 41), generator=torch.Generator().manual_seed(3))
pytestmark = [pytest.mark.filterwarnings(warning) for warning in UPSTREAM]


def gradients(model, dtype):
    inputs = {"input_ids": IDS, "labels": IDS, "use_cache": False}
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = model(**inputs).loss
    loss.backward()
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()])


def relative(x, reference):
    return ((x - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_training_step_errs_no_more_than_the_stock_model(dtype, backend):
    # A window wider than the text: adapted and stock compute the same function.
    stock = tiny_model("llama")
    stock.set_attn_implementation("sdpa")
    model, exact = copy.deepcopy(stock), copy.deepcopy(stock)
    swaa.adapt(model, SWAAConfig(window=64), backend=backend, quiet=True)
    loss, truth = gradients(exact, None)
    stock_loss, stock_error = gradients(stock, dtype)
    ours_loss, ours_error = gradients(model, dtype)
    assert ours_loss.isfinite()
    assert abs(ours_loss - loss) < 2 * abs(stock_loss - loss) + 1e-2
    assert relative(ours_error, truth) < 2 * relative(stock_error, truth)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_generation_under_autocast_masks_as_without(backend):
    model = tiny_model("qwen3")
    swaa.adapt(model, CONFIG, backend=backend, quiet=True)
    options = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    exact = torch.stack(model.generate(IDS, **options).logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.generate(IDS, **options)
    assert relative(torch.stack(output.logits)[0].float(), exact[0]) < 0.02
    swaa.adapt(model, SWAAConfig(window=64), quiet=True)
    full = torch.stack(model.generate(IDS, **options).logits)
    assert relative(full[0], exact[0]) > 0.1  # what another mask would have made of it


def test_backends_compute_outside_autocast():
    seen = []
    model = tiny_model("llama")
    swaa.adapt(model, CONFIG, backend="reference", quiet=True)
    backends = model.model.layers[0].self_attn.swaa_layer.backends
    run = backends.run

    def watch(call):
        seen.append((torch.is_autocast_enabled("cpu"), call.q.dtype, call.v.dtype))
        return run(call)

    backends.run = watch
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(IDS)
    assert seen
    assert set(seen) == {(False, torch.bfloat16, torch.bfloat16)}


SETTINGS = {
    "bf16": True, "use_cpu": True, "max_steps": 8, "learning_rate": 1e-2, "report_to": "none",
    "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no",
}  # fmt: skip


def losses_of(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_trainer_of_transformers_in_bfloat16(tmp_path):
    model = adapted("llama", CONFIG)
    rows = Dataset.from_dict({"input_ids": IDS.tolist(), "labels": IDS.tolist()})
    arguments = TrainingArguments(output_dir=str(tmp_path), **SETTINGS)
    losses = losses_of(Trainer(model=model, args=arguments, train_dataset=rows))
    assert losses[-1] < 0.9 * losses[0]


def test_trl_in_its_default_precision(tmp_path):
    from swaa.models import load_model

    loaded = load_model(str(save_checkpoint(tmp_path)), dtype="float32", device="cpu")
    swaa.adapt(loaded.model, CONFIG, quiet=True)
    arguments = SFTConfig(output_dir=str(tmp_path), **SETTINGS)
    trainer = SFTTrainer(
        model=loaded.model,
        args=arguments,
        train_dataset=Dataset.from_dict({"text": ["one two three four " * 4, "five six " * 6]}),
        processing_class=loaded.tokenizer,
    )
    losses = losses_of(trainer)
    assert losses[-1] < losses[0]
