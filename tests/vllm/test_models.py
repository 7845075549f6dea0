"""Every dense family, and torch.compile, against the judge."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from swaa.config import SWAAConfig
from tests import served
from tests.vllm.engine import Engine, Judge, prompts_of
from tests.vllm.routers import as_routed, near_ties

FAMILIES = ("llama", "qwen2", "qwen3_moe", "mistral", "mixtral", "phi3", "olmo2", "granite", "glm4")
CONFIG = SWAAConfig(window=24, sink_tokens=4, full_layers=(1,), full_decode=(2,), dense_tail=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_family(checkpoint, olmo2_restored, family):
    folder = checkpoint(family)
    judge = Judge(folder, CONFIG)  # first: vLLM's Transformers backend changes classes
    prompts = prompts_of(129, 40)
    with Engine(folder, CONFIG.to_dict()) as engine:
        answers = engine.answers(prompts, max_tokens=12)
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)


@pytest.mark.slow
def test_compiled_model(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    prompts = prompts_of(129, 40)
    with Engine(checkpoint(), CONFIG.to_dict(), enforce_eager=False) as engine:
        answers = engine.answers(prompts, max_tokens=12)
    judge = Judge(checkpoint(), CONFIG)
    for prompt, answer in zip(prompts, answers, strict=True):
        judge.check(prompt, answer)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_near_ties_of_routers_are_found_and_reversed(checkpoint, family):
    """What the judge allows on GPUs: TF32 sent row 74 of Mixtral's prompt to another expert."""
    judge = Judge(checkpoint(family), CONFIG)
    prompt, _ = prompts_of(129, 40)

    def logits():
        return judge.logits(prompt, [1, 2])

    ties = near_ties(judge.model, logits)
    plain, *others = as_routed(judge.model, logits)
    assert len(others) == len(ties) > 0
    torch.testing.assert_close(logits(), plain)  # nothing is left behind
    changes = [float((other - plain).abs().max()) for other in others]
    assert max(changes) > 1e-2
    if family == "mixtral":
        tie = ties.index((judge.model.model.layers[2].mlp.gate, 74))
        moved = (others[tie] - plain).abs().amax(-1)
        assert moved[0] > 0.1  # the prompt's last row is of the dense tail and sees row 74
        assert moved[1] < 1e-4


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_judge_of_gpus_allows_one_near_tie_and_forgets_it(checkpoint, monkeypatch, family):
    monkeypatch.setattr(served, "ON_GPU", True)
    monkeypatch.setattr(served, "STOCK_TOLERANCE", 5e-2)
    judge = Judge(checkpoint(family), CONFIG)
    prompt, short = prompts_of(129, 40)
    ids = [1, 2]
    plain, *others = as_routed(judge.model, lambda: judge.logits(prompt, ids))
    moved = max(others, key=lambda other: float((other - plain).abs().max()))
    for off in (0, 2):
        scores = moved.log_softmax(-1)[range(2), ids] + off
        said = [{token: SimpleNamespace(logprob=p)} for token, p in zip(ids, scores, strict=True)]
        answer = SimpleNamespace(token_ids=ids, logprobs=said)
        with pytest.raises(AssertionError) if off else contextlib.nullcontext() as refused:
            judge.check(prompt, answer, greedy=False)
        # While a traceback lives, so does what was left unread.
        assert bool(refused) == bool(off)
        torch.testing.assert_close(judge.logits(prompt, ids), plain)
        judge.logits(short, ids)
