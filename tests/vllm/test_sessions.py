"""Streamed sessions: vLLM lengthens a request's prompt by what it generated and by new input."""

import asyncio

import torch

from swaa.config import SWAAConfig
from tests.integrations.loop_model import Rows, build_masks, loop_logits, positions
from tests.vllm.engine import BLOCK, OPTIONS, TOLERANCE, Judge, prompts_of, sampling

CONFIG = SWAAConfig(window=24, sink_tokens=4, full_layers=(1,), full_decode=(0, 2))
FIRST, ANSWER, QUESTION, MORE = 100, 97, 40, 4
KEPT = ANSWER - 1
"""Generated tokens that become prompt: vLLM drops the last, whose row was never computed."""


class Heard(list):
    """Tokens of one answer, and their log-probabilities."""

    def add(self, output):
        """Take in what a request's output brings."""
        chosen = zip(output.token_ids, output.logprobs, strict=True)
        self.extend((token, scores[token].logprob) for token, scores in chosen)

    @property
    def ids(self):
        return [token for token, _ in self]


async def session_and_after(engine, first, question):
    """A session of two parts, then its whole text as a plain prompt: answers, tokens reused."""
    from vllm.engine.protocol import StreamingInput
    from vllm.sampling_params import RequestOutputKind

    heard = Heard()
    options = {"output_kind": RequestOutputKind.DELTA}

    async def pieces():
        parameters = sampling(max_tokens=ANSWER, **options)
        # Copies: the front end lengthens a session's list itself.
        yield StreamingInput({"prompt_token_ids": list(first)}, parameters)
        while len(heard) < ANSWER:
            await asyncio.sleep(0.05)
        parameters = sampling(max_tokens=MORE, **options)
        yield StreamingInput({"prompt_token_ids": list(question)}, parameters)

    async for part in engine.generate(pieces(), sampling(max_tokens=ANSWER, **options), "session"):
        heard.add(part.outputs[0])
    plain = {"prompt_token_ids": [*first, *heard.ids[:KEPT], *question]}
    outputs = [out async for out in engine.generate(plain, sampling(max_tokens=8), "plain")]
    return heard, outputs[-1]


def test_a_session_answers_by_the_rule_and_publishes_its_first_prompt_only(checkpoint):
    from vllm.v1.engine.async_llm import AsyncLLM

    from vllm import AsyncEngineArgs

    first, question = prompts_of(FIRST, QUESTION)
    judge = Judge(checkpoint(), CONFIG)
    options = {**OPTIONS, "num_gpu_blocks_override": 100, "max_model_len": 512}
    options["additional_config"] = {"swaa": CONFIG.to_dict()}
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=checkpoint(), **options))
    try:
        heard, after = asyncio.run(session_and_after(engine, first, question))
    finally:
        engine.shutdown()
    assert after.num_cached_tokens == FIRST // BLOCK * BLOCK
    judge.check(after.prompt_token_ids, after.outputs[0])
    # The session's second answer: what it generated before saw every key, its question did not.
    assert len(heard) == ANSWER + MORE
    ids = torch.tensor([[*after.prompt_token_ids, *heard.ids[ANSWER:]]])
    total, end = ids.shape[1], FIRST + KEPT
    rows = Rows(set(), {*range(FIRST, end), *range(end + QUESTION, total)})
    masks = build_masks(CONFIG, judge.layers, [0], total, rows)
    logits = loop_logits(judge.model, ids, masks, positions([0], total))[0]
    scores = logits[total - MORE - 1 : -1].log_softmax(-1)
    expected = scores.gather(1, ids[0, -MORE:, None])[:, 0]
    said = torch.tensor([logprob for _, logprob in heard[ANSWER:]])
    torch.testing.assert_close(said, expected, atol=TOLERANCE, rtol=TOLERANCE)
