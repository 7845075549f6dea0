"""Batches, packs, checkpointing and resuming: different ways to the same numbers."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from swaa.config import SWAAConfig
from swaa.training.conversations import load_conversations
from swaa.training.run import train
from swaa.training.settings import TrainingSettings
from swaa.training.trainer import SlidingTrainer
from tests.training.conftest import CONFIG, conversations, write_lines

STEPS = {"learning_rate": 0.001, "epochs": 2, "max_length": 400, "schedule": "constant"}


@pytest.fixture
def trained(load, data, tmp_path):
    """Runs one training; gives its curve and its adapter's tensors."""

    def run(name, *, file=data, resume=False, **changes):
        settings = TrainingSettings(**{**STEPS, "warmup": 0.0, **changes})
        done = train(
            load(), CONFIG, file, tmp_path / name, settings, name="m", reload=None, resume=resume
        )
        return done.rows, load_file(done.adapter / "adapter_model.safetensors")

    return run


def _same(ours, theirs, *, tolerance=1e-5):
    (rows, adapter), (other_rows, other) = ours, theirs
    assert len(rows) == len(other_rows) > 1
    for row, reference in zip(rows, other_rows, strict=True):
        for name in ("loss", "sft", "answer_tokens"):
            assert row[name] == pytest.approx(reference[name], rel=tolerance, abs=tolerance)
    # Adam's first step is as large where a gradient is rounding as where it is not: single weights
    # say nothing, all of them do.
    ours, theirs = (torch.cat([x[name].flatten() for name in other]) for x in (adapter, other))
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()
    assert rows[-1]["loss"] < rows[0]["loss"], "nothing was learnt, so nothing was compared"


@pytest.mark.parametrize("objective", ["sft", "sft+kl"])
def test_one_times_eight_is_eight_times_one(trained, objective):
    eight = trained("eight", batch_size=8, accumulate=1, objective=objective)
    one = trained("one", batch_size=1, accumulate=8, objective=objective)
    _same(one, eight)


def test_checkpointing_changes_nothing(trained):
    on = trained("on", batch_size=4, accumulate=1, objective="sft+kl")
    off = trained("off", batch_size=4, accumulate=1, objective="sft+kl", checkpointing=False)
    _same(on, off)


def test_packed_is_unpacked(trained, tmp_path):
    lines = conversations(6)
    file = write_lines(tmp_path / "few.jsonl", lines)
    apart = trained("apart", file=file, batch_size=6, accumulate=1, objective="sft+kl")
    options = {"objective": "sft+kl", "packing": True, "max_length": 1000}
    packed = trained("packed", file=file, batch_size=1, accumulate=1, **options)
    assert len(packed[0]) == 2, "the conversations did not go into one pack"
    _same(packed, apart)


def test_length_grouping_puts_the_longest_first(trained):
    rows, _ = trained("grouped", batch_size=2, accumulate=1, group_by_length=True, epochs=1)
    tokens, _ = trained("random", batch_size=2, accumulate=1, epochs=1)
    assert sum(row["answer_tokens"] for row in rows) == sum(row["answer_tokens"] for row in tokens)
    assert [row["answer_tokens"] for row in rows] != [row["answer_tokens"] for row in tokens]


def test_a_resumed_run_continues_the_curve_exactly(trained, tmp_path):
    options = {"batch_size": 2, "accumulate": 1, "dropout": 0.2, "schedule": "cosine"}
    options |= {"save_every": 3, "objective": "sft+kl"}
    whole, adapter = trained("whole", **options)
    (tmp_path / "cut" / "checkpoints").mkdir(parents=True)
    record = json.loads((tmp_path / "whole" / "training.json").read_text())
    for key in ("steps", "processes", "examples", "skipped", "provenance"):
        del record[key]  # as it is written before the first step
    (tmp_path / "cut" / "training.json").write_text(json.dumps(record))
    third = "checkpoints/checkpoint-3"
    shutil.copytree(tmp_path / "whole" / third, tmp_path / "cut" / third)
    half = tmp_path / "cut" / "checkpoints" / "checkpoint-6"  # killed while it was written
    half.mkdir()
    with pytest.raises(ValueError, match="cut was started with other settings; resume it with the"):
        trained("cut", resume=True, **{**options, "seed": 1})
    with pytest.raises(ValueError, match="cut holds an interrupted training; use --resume"):
        trained("cut", **options)
    rows, again = trained("cut", resume=True, **options)
    assert len(whole) == 8
    assert rows == whole
    assert all(torch.equal(again[name], adapter[name]) for name in adapter)


def test_the_loss_is_the_models_own(trained, load, data):
    import swaa

    rows, _ = trained("run", batch_size=8, accumulate=1, max_steps=1)
    loaded = load()
    swaa.adapt(loaded.model, CONFIG, quiet=True)
    examples = load_conversations(data, loaded.tokenizer, max_length=400).examples
    total = tokens = 0.0
    for example in examples:
        labels = torch.tensor([example.labels])
        with torch.no_grad(), swaa.attention_rows(labels != -100):
            loss = loaded.model(torch.tensor([example.input_ids]), labels=labels).loss
        total += float(loss) * example.answer_tokens
        tokens += example.answer_tokens
    assert rows[0]["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert rows[0]["answer_tokens"] == tokens


def test_where_nothing_slides_nothing_is_trained(load, data, tmp_path):
    config = SWAAConfig(window=None)
    options = {"name": "m", "reload": None}
    with pytest.raises(ValueError, match="leaves every layer full: there is no mask to train for"):
        train(load(), config, data, tmp_path / "out", TrainingSettings(), **options)
    config = SWAAConfig(window=8, full_layers=(0, 1, 2, 3))
    with pytest.raises(ValueError, match="no layer would slide: full_layers names all that can"):
        train(load(), config, data, tmp_path / "out", TrainingSettings(max_length=400), **options)


def _full_at(step, monkeypatch):
    compute = SlidingTrainer.compute_loss

    def loss(self, *args, **options):
        if self.state.global_step == step:
            raise torch.OutOfMemoryError("no")
        return compute(self, *args, **options)

    monkeypatch.setattr(SlidingTrainer, "compute_loss", loss)


@pytest.mark.parametrize(
    ("options", "step", "message"),
    [
        (
            {"batch_size": 2, "checkpointing": False},
            0,
            "out of memory with 2 conversations of up to {longest} tokens at once; lower"
            " --batch-size, or lower --max-length (--skip-bad leaves longer conversations out), or"
            " leave --no-checkpointing out; no checkpoint was written, so the folder can be used"
            " again",
        ),
        (
            {"packing": True, "max_length": 500, "save_every": 1, "accumulate": 1},
            1,
            "out of memory with 1 packs of 500 tokens at once; lower --max-length (--skip-bad"
            " leaves longer conversations out); a checkpoint that was written can be resumed with"
            " the same settings only, where there is more memory; with others name another folder"
            " by --out",
        ),
    ],
)
def test_what_does_not_fit_into_memory_is_said(
    trained, load, data, monkeypatch, options, step, message
):
    with monkeypatch.context() as patch:
        _full_at(step, patch)
        with pytest.raises(ValueError, match="out of memory") as raised:
            trained("run", **options)
    examples = load_conversations(data, load().tokenizer, max_length=400).examples
    longest = max(len(example.input_ids) for example in examples)
    assert str(raised.value) == message.format(longest=longest)
    trained("run", **options, resume=step > 0)  # what it says can be done


def test_nothing_is_sent_anywhere(trained, monkeypatch):
    import huggingface_hub.utils
    import trl.trainer.base_trainer as base

    def send(*args, **options):
        raise AssertionError("telemetry")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base, "send_telemetry", send)
    monkeypatch.setattr(huggingface_hub.utils, "send_telemetry", send)
    trained("run", max_steps=1)


def test_what_was_asked_is_written_down(trained, tmp_path):
    trained("run", max_steps=2, accumulate=2)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["swaa"] == CONFIG.to_dict()
    assert record["settings"]["accumulate"] == 2
    assert record["steps"] == 2
    assert record["provenance"]["versions"]["trl"]
    lines = (tmp_path / "run" / "loss.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "ppo"}, "objective is 'ppo'; expected one of sft, kl, sft"),
        ({"tracker": "x"}, "tracker is 'x'; expected one of none, trackio"),
        ({"schedule": "x"}, "schedule is 'x'; expected one of cosine"),
        ({"rank": 0}, "rank is 0; expected a whole number of at least 1"),
        ({"save_every": 0}, "save_every is 0; expected a whole number"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a finite number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; expected a finite number above 0"),
        ({"epochs": math.inf}, "epochs is inf; expected a finite number above 0"),
        ({"clip": math.inf}, "clip is inf; expected a finite number above 0"),
        ({"warmup": math.nan}, "warmup is nan; expected at least 0, below 1"),
        ({"dropout": 1.0}, "dropout is 1.0; expected at least 0, below 1"),
        ({"targets": ()}, "targets is empty; name modules"),
        ({"packing": True, "group_by_length": True}, "packing and group_by_length exclude"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**change)


@pytest.mark.parametrize(
    ("warmup", "steps", "rates"), [(0.05, 2, [1.0, 0.5]), (0.5, 4, [0.0, 0.5, 1.0, 0.5])]
)
def test_a_warm_up_of_one_step_wastes_none(trained, warmup, steps, rates):
    options = {"schedule": "linear", "batch_size": 2, "accumulate": 1}
    rows, _ = trained("run", warmup=warmup, max_steps=steps, **options)
    seen = [row["learning_rate"] / STEPS["learning_rate"] for row in rows]
    assert seen == pytest.approx(rates)
