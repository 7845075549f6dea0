"""In bfloat16, chunks long enough to be gathered: on a GPU with graphs of decode batches.

The judge is the model in float32 under a mask written out; what rounding may do is measured on the
same model in 16 bits under eager attention: twice its largest error.
"""

import pytest

from tests.rounded import CHUNK, CONFIGS, PROMPTS, judge, said, save_wide_model
from tests.served import ON_GPU, prompts_of
from tests.sglang.engine import Engine

OPTIONS = {
    "dtype": "bfloat16",
    "context_length": 4096,
    "max_total_tokens": 32_768,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_wide_model(tmp_path_factory.mktemp("qwen3"))


@pytest.mark.parametrize("name", CONFIGS if ON_GPU else ["tail"])
@pytest.mark.parametrize("page", [1, 64] if ON_GPU else [1])
def test_logprobs_and_tokens(folder, name, page):
    config = CONFIGS[name]
    prompts = prompts_of(*PROMPTS, seed=21)
    options = {**OPTIONS, "page_size": page, "chunked_prefill_size": CHUNK // page * page}
    with Engine(folder, config.to_dict(), **options) as engine:
        together = engine.answers(prompts, max_tokens=40)
        batches = engine.batches()
        engine.forget()
        alone = [engine.answers([prompt], max_tokens=40)[0] for prompt in prompts]
        repeated = engine.answers(prompts, max_tokens=40)  # from the radix cache
    assert any(any(batch["gathered"]) for batch in batches)
    judge(folder, config, prompts, [said(answers) for answers in (together, alone, repeated)])
