"""Every dense family, and torch.compile, against the judge."""

import pytest

from swaa.config import SWAAConfig
from tests.vllm.engine import Engine, Judge, prompts_of

FAMILIES = ("llama", "qwen2", "qwen3_moe", "mistral", "mixtral", "phi3", "olmo2", "granite", "glm4")
CONFIG = SWAAConfig(window=24, sink_tokens=4, full_layers=(1,), full_decode=(2,), dense_tail=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_family(checkpoint, family):
    folder = checkpoint(family)
    judge = Judge(folder, CONFIG)  # first: vLLM's Transformers backend changes classes for good
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
