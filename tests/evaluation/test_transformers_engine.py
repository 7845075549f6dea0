import pytest
import torch

from swaa.adaptation import is_adapted
from swaa.config import SWAAConfig
from swaa.evaluation.engines import Request, Sampling, make_batches
from swaa.evaluation.engines.transformers import TransformersEngine

FAST = SWAAConfig(window=16, sink_tokens=2, full_decode=True, dense_tail=4)
FULL = SWAAConfig(window=None)


def _requests(loaded, *lengths, max_new_tokens=8):
    chance = torch.Generator().manual_seed(1)
    return [
        Request(
            id=f"r{index}",
            ids=tuple(torch.randint(5, 250, (length,), generator=chance).tolist()),
            content="",
            max_new_tokens=max_new_tokens,
        )
        for index, length in enumerate(lengths)
    ]


def _answers(loaded, config, batches, **options):
    with TransformersEngine(loaded, config, **options) as engine:
        return {reply.id: reply for reply in engine.answer(batches)}


@pytest.mark.parametrize(
    "config", [FULL, FAST, SWAAConfig(window=16)], ids=["full", "fast", "naive"]
)
def test_a_batch_answers_as_each_prompt_alone(loaded, config):
    requests = _requests(loaded, 70, 41, 90)
    alone = _answers(loaded, config, [[request] for request in requests])
    together = _answers(loaded, config, make_batches(requests, 3))
    assert {k: v.output for k, v in alone.items()} == {k: v.output for k, v in together.items()}
    assert all(reply.first_token_s > 0 for reply in together.values())


def test_the_recipe_is_in_force_inside_with_and_undone_behind(loaded):
    engine = TransformersEngine(loaded, FAST)
    assert not is_adapted(loaded.model)
    with engine:
        assert is_adapted(loaded.model)
        assert "adapted 2 of 2 layers" in engine.summary
    assert not is_adapted(loaded.model)
    with TransformersEngine(loaded, FULL) as full:
        assert not is_adapted(loaded.model)
        assert "as it is" in full.summary


def test_chunks_change_nothing(loaded):
    batches = make_batches(_requests(loaded, 70, 41), 2)
    whole = _answers(loaded, FAST, batches)
    chunked = _answers(loaded, FAST, batches, chunk=16)
    assert {k: v.output for k, v in whole.items()} == {k: v.output for k, v in chunked.items()}


def test_each_prompt_has_its_own_longest_answer(loaded):
    short, long = _requests(loaded, 30, 30)
    short = Request(id="short", ids=short.ids, content="", max_new_tokens=2)
    replies = _answers(loaded, FULL, [[short, long]])
    assert replies["short"].new_tokens == 2
    assert replies["r1"].new_tokens == 8
    assert replies["short"].truncated


def test_an_answer_ends_with_the_end_token(loaded):
    engine = TransformersEngine(loaded, FULL)
    (request,) = _requests(loaded, 5)
    reply = engine._reply(request, [70, 71, 1, 0, 0], 0.5)
    assert (reply.new_tokens, reply.truncated) == (3, False)
    assert reply.ids == (70, 71, 1)
    assert reply.output == loaded.tokenizer.decode([70, 71])


def test_drawn_answers_depend_on_the_seed_and_on_nothing_drawn_before(loaded):
    one, other = _requests(loaded, 30, 41, max_new_tokens=16)
    draw = Sampling(temperature=1.0, seed=3)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    both = _answers(loaded, FULL, [[one], [other]], sampling=draw)
    assert torch.equal(torch.random.get_rng_state(), before)
    last = _answers(loaded, FULL, [[other]], sampling=draw)
    assert both["r1"].output == last["r1"].output
    again = _answers(loaded, FULL, [[other]], sampling=Sampling(seed=4))
    assert again["r1"].output != last["r1"].output
    greedy = _answers(loaded, FULL, [[other]])
    cold = _answers(loaded, FULL, [[other]], sampling=Sampling(temperature=1e-4))
    assert cold["r1"].output == greedy["r1"].output != last["r1"].output


def test_a_temperature_of_zero_draws_nothing():
    with pytest.raises(ValueError, match="temperature is 0; expected more than 0 to draw"):
        Sampling(temperature=0)


def test_out_of_memory_says_what_to_change(loaded, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(type(loaded.model), "generate", fail)
    with pytest.raises(ValueError, match="out of memory with 2 prompts of up to 9 tokens; lower"):
        _answers(loaded, FULL, [_requests(loaded, 9, 4)])


def test_likelihoods_equal_one_pass_over_the_whole_text(loaded):
    (request,) = _requests(loaded, 50)
    ids = torch.tensor([request.ids])
    with torch.inference_mode():
        logits = loaded.model(ids).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    for chunk in (None, 7):
        with TransformersEngine(loaded, FULL, chunk=chunk) as engine:
            found = engine.negative_log_likelihoods(request.ids, answer_from=50)
        torch.testing.assert_close(found, expected)


def test_likelihoods_of_an_adapted_model_know_where_the_answer_begins(loaded):
    (request,) = _requests(loaded, 80)
    with TransformersEngine(loaded, FULL) as engine:
        full = engine.negative_log_likelihoods(request.ids, answer_from=60)
    with TransformersEngine(loaded, FAST, chunk=9) as engine:
        fast = engine.negative_log_likelihoods(request.ids, answer_from=60)
        whole = engine.negative_log_likelihoods(request.ids, answer_from=80)
    inside = 16 + 2 - 1
    torch.testing.assert_close(fast[:inside], full[:inside])
    assert not torch.allclose(fast[inside:], full[inside:])
    assert torch.equal(fast[:54], whole[:54]) or torch.allclose(fast[:54], whole[:54])
    assert not torch.allclose(fast[60:75], whole[60:75])
