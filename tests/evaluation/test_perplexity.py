import math

import pytest
import torch

from swaa import models
from swaa.config import SWAAConfig
from swaa.evaluation.engines.transformers import TransformersEngine
from swaa.evaluation.run import execute
from swaa.evaluation.tasks.haystack import read_filler
from swaa.evaluation.tasks.perplexity import BLOCK, Perplexity, answer_from, encode, split
from tests.evaluation.fakes import fake_engine, make_run, make_samples

NAIVE = SWAAConfig(window=128)


@pytest.mark.parametrize("length", [128, 517, 1500])
def test_texts_have_exactly_the_length_asked_for(prompt, length):
    first, second = Perplexity().samples(prompt, length=length, count=2, seed=0)
    assert len(encode(prompt, first.context)) == len(encode(prompt, second.context)) == length
    assert first.context != second.context
    assert 0 < answer_from(length) < length
    assert answer_from(length) % BLOCK == 0


def test_texts_too_short(prompt):
    with pytest.raises(ValueError, match="perplexity of 100 tokens; expected at least 128"):
        Perplexity().samples(prompt, length=100, count=1, seed=0)


def test_a_text_is_not_repeated(prompt):
    tokens = len(encode(prompt, read_filler()))
    with pytest.raises(ValueError, match=f"would repeat the text .* which has {tokens} tokens"):
        Perplexity().samples(prompt, length=tokens + 1, count=1, seed=0)


def test_a_run_adds_up_every_token_and_resumes(prompt, loaded, tmp_path):
    run = make_run(prompt, task=Perplexity(), length=500, count=2, config=NAIVE)
    samples = make_samples(run)
    with TransformersEngine(loaded, NAIVE) as engine:
        outcome = execute(run, samples, engine, folder=tmp_path)
        ids = encode(prompt, samples[0].context)
        expected = engine.negative_log_likelihoods(ids, answer_from=answer_from(500))
    blocks = outcome.samples[0]["blocks"]
    assert sum(count for _, count in blocks) == 499
    assert sum(total for total, _ in blocks) == pytest.approx(float(expected.sum()), rel=1e-5)
    assert [row["place"] for row in outcome.result.rows] == ["inside", "beyond", "answer"]
    for row in outcome.result.rows:
        assert row["perplexity"] == pytest.approx(math.exp(row["nll"]))
    outcome.path.unlink()
    assert execute(run, samples, engine, folder=tmp_path).samples == outcome.samples


def test_positions_are_parted_by_block():
    nll = torch.arange(8.0)
    blocks = [[float(value) * BLOCK, BLOCK] for value in nll]
    sample = {"length": 8 * BLOCK, "answer_from": 6 * BLOCK, "blocks": blocks}
    assert split([sample], window=2 * BLOCK, sink_tokens=10) == {
        "inside": 0.5, "beyond": 4.0, "answer": 6.5,
    }  # fmt: skip
    assert split([sample], window=None, sink_tokens=0) == {
        "inside": 2.5, "beyond": None, "answer": 6.5,
    }  # fmt: skip


def test_endpoints_are_not_asked(prompt, tmp_path):
    run = make_run(prompt, task=Perplexity(), length=200, count=1)
    with pytest.raises(ValueError, match="perplexity needs a model loaded here"):
        execute(run, make_samples(run), fake_engine([]), folder=tmp_path)


def test_swaa_eval_shows_it_beside_answers(loaded, monkeypatch, tmp_path, prints):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load_model", lambda name, **options: loaded)
    words = ["--lengths", "600", "--samples", "1", "--window", "128", "--recipes", "full,fast"]
    out = prints("eval", "tiny", "--tasks", "perplexity", *words)
    assert out.startswith("Perplexity of the first 256 tokens")
    out = prints("eval", "tiny", "--tasks", "perplexity,needle", *words)
    assert out.startswith("task ")
    assert "Perplexity of the first 256 tokens" in out
