import itertools

import pytest
import torch

from swaa.config import LayerPlan
from swaa.selection import batches
from swaa.selection.batches import FAR_SHARE, TeacherForced
from swaa.selection.continuation import CONTINUED, kept_scores, make_texts
from swaa.selection.passes import SharedPasses
from tests.selection.conftest import DEPTH, teacher_forced


def _places(texts):
    return {int(text.id.rpartition("-")[2]) for text in texts}


def test_no_token_that_is_predicted_is_both_tuned_on_and_held_out(prompt):
    made = make_texts(prompt, length=400, calibration=6, held_out=10, seed=0)
    assert (len(made.calibration), len(made.held_out), made.length) == (6, 10, 400)
    places = sorted(_places(made.calibration) | _places(made.held_out))
    assert len(places) == 16
    assert min(b - a for a, b in itertools.pairwise(places)) >= CONTINUED
    for text in (*made.calibration, *made.held_out):
        assert (len(text.prompt), len(text.answer), text.far) == (400 - CONTINUED, CONTINUED, True)
    other = make_texts(prompt, length=400, calibration=6, held_out=10, seed=1)
    assert _places(other.calibration) != _places(made.calibration)
    # At another length the same places are held out.
    longer = make_texts(prompt, length=600, calibration=6, held_out=10, seed=0)
    assert _places(longer.held_out) == _places(made.held_out)
    by_place = {text.id.rpartition("-")[2]: text for text in longer.held_out}
    for text in made.held_out:
        assert by_place[text.id.rpartition("-")[2]].answer == text.answer


def test_a_text_that_begins_before_the_novel_goes_on_from_its_end(prompt):
    from swaa.evaluation.tasks.haystack import read_filler

    ids = prompt.tokenizer(read_filler(), verbose=False)["input_ids"]
    made = make_texts(prompt, length=len(ids), calibration=1, held_out=1, seed=0)
    for text in (*made.calibration, *made.held_out):
        end = int(text.id.rpartition("-")[2])
        assert [*text.prompt, *text.answer] == [*ids[end:], *ids[:end]]


@pytest.mark.parametrize(("length", "count"), [(255, 2), (10**7, 2), (400, 10**5)])
def test_texts_that_the_novel_cannot_give_are_refused(prompt, length, count):
    with pytest.raises(ValueError, match=rf"{count} texts of {length} tokens; the novel's [\d,]+"):
        make_texts(prompt, length=length, calibration=1, held_out=count - 1, seed=0)


def test_rows_that_look_far_are_those_that_a_window_predicts_worst(loaded):
    far, plain = teacher_forced(60, 50, answers=(20, 8, 8))
    samples = [TeacherForced(far.id, far.prompt, far.answer, far=True), plain]
    near, full = LayerPlan(window=8, sink_tokens=2), LayerPlan(window=None)
    plans = [(full,) * DEPTH, (near,) * DEPTH]
    (batch,) = batches.make(loaded, samples, 2, 12)
    with SharedPasses(loaded, samples, batch_size=2, tail=12, near=near) as passes:
        found = list(passes.measure(plans[1], plans, kl=True))
        logits = [passes._run(batch, each, None).logits for each in plans]
    logprobs = [one.log_softmax(-1) for one in logits]
    ours, theirs = (one[0].double() for one in logprobs)
    row_kl = (ours.exp() * (ours - theirs)).sum(-1)
    most = round(FAR_SHARE * 20)
    worst = row_kl.topk(most)
    assert batches.far_rows(batch, *logprobs)[0].nonzero()[:, 0].tolist() == sorted(
        worst.indices.tolist()
    )
    assert found[1].kl[0] == pytest.approx(worst.values.mean().item(), abs=1e-5)
    assert found[1].kl[0] > row_kl.mean().item() + 0.01, "rows are all alike"
    assert found[0].kl == pytest.approx([0, 0], abs=1e-6)
    targets = torch.tensor(far.answer)
    nll = -theirs[torch.arange(20), targets][worst.indices].mean().item()
    assert found[1].nll[0] == pytest.approx(nll, abs=1e-5)
    # Of the other sample every row of the answer counts.
    assert batches.far_rows(batch, *logprobs)[1].sum() == 8


def test_what_is_kept_is_a_likelihood_a_token():
    assert kept_scores([0.0, -1e-9, 0.6931471805599453]) == [1.0, 1.0, 0.5]
