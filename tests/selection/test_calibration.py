import pytest

from swaa.evaluation.engines import Reply
from swaa.evaluation.sample import Sample
from swaa.evaluation.tasks.needle import Needle
from swaa.evaluation.tasks.rows import DataFile
from swaa.selection.calibration import (
    ANSWER_TOKENS,
    GivenSamples,
    gold,
    own_answers,
    require_reach,
    split,
)
from swaa.selection.own_prompts import OwnPrompts, word_overlap
from tests.selection.conftest import write_lines


def _sample(index, *, length=100, answers=("12",), prefix="", gold="yes"):
    return Sample(
        id=f"s{index}",
        task="prompts",
        length=length,
        context=f"text {index}",
        question="",
        answer_prefix=prefix,
        answers=answers,
        max_new_tokens=8,
        tags={"gold": gold},
    )


SAMPLES = [_sample(i) for i in range(20)]


def test_calibration_and_held_out_share_no_sample():
    parts = split(Needle(), SAMPLES, calibration=8, held_out=6, seed=0)
    assert (len(parts.calibration), len(parts.held_out)) == (8, 6)
    assert not {s.id for s in parts.calibration} & {s.id for s in parts.held_out}
    assert parts == split(Needle(), SAMPLES, calibration=8, held_out=6, seed=0)
    assert parts != split(Needle(), SAMPLES, calibration=8, held_out=6, seed=1)
    rest = split(Needle(), SAMPLES, calibration=8, held_out=None, seed=0)
    assert len(rest.held_out) == 12


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="needle has 20 usable samples, too few to tune on 18 and"):
        split(Needle(), SAMPLES, calibration=18, held_out=None, seed=0)
    with pytest.raises(ValueError, match="--samples 3: expected at least 4 samples"):
        split(Needle(), SAMPLES, calibration=3, held_out=None, seed=0)
    with pytest.raises(ValueError, match="--held-out 2: expected at least 4 samples"):
        split(Needle(), SAMPLES, calibration=8, held_out=2, seed=0)


def test_prompts_that_the_window_shows_whole_are_refused():
    require_reach([s.length for s in SAMPLES], window=80, sink_tokens=4, length=100)
    fit = "20 of 20 calibration prompts fit into 96 keys and 4 sinks, where every layer .*: "
    flags = ", or lower --window or --sink-tokens"
    with pytest.raises(ValueError, match=rf"{fit}raise --length \(now 100\){flags}"):
        require_reach([s.length for s in SAMPLES], window=96, sink_tokens=4, length=100)
    with pytest.raises(ValueError, match=f"{fit}give longer prompts{flags}"):
        require_reach([s.length for s in SAMPLES], window=96, sink_tokens=4, length=None)


def test_gold_answers_follow_the_prompt_as_the_model_would_write_them(prompt):
    begun, bare = gold(prompt, [_sample(0, prefix="It is"), _sample(1, answers=("1", "2"))])
    decode = prompt.tokenizer.decode
    assert decode(begun.prompt).endswith("It is")
    assert decode(begun.answer) == " 12"
    assert decode(bare.answer) == "1, 2"
    (long,) = gold(prompt, [_sample(0, answers=("x" * 500,))])
    assert len(long.answer) == ANSWER_TOKENS


class _Echo:
    def __init__(self, output):
        self._output = output

    def answer(self, batches):
        for batch in batches:
            for request in batch:
                yield Reply(
                    id=request.id,
                    output=self._output,
                    first_token_s=None,
                    new_tokens=2,
                    truncated=False,
                    ids=(7, 9) if self._output.strip() else (1,),
                )


def test_without_answers_the_models_own_take_their_place(prompt):
    samples = [_sample(i, answers=(), gold="no") for i in range(3)]
    answered, forced = own_answers(prompt, samples, _Echo("so it is"), batch_size=2)
    assert [sample.answers for sample in answered] == [("so it is",)] * 3
    assert [sample.answer for sample in forced] == [(7, 9)] * 3
    with pytest.raises(ValueError, match="s0 has no answer, and the model itself answers nothing"):
        own_answers(prompt, samples, _Echo(" "), batch_size=2)


def _task(tmp_path, *rows):
    path = write_lines(tmp_path / "my.jsonl", rows)
    return OwnPrompts(DataFile.find("swaa tune", str(path)))


def _read(task, prompt):
    return task.samples(prompt, length=None, count=None, seed=0)


def test_own_prompts_are_read_with_and_without_answers(tmp_path, prompt):
    task = _task(tmp_path, {"prompt": "One?", "answer": "1"}, {"prompt": "Two?", "answer": ["2"]})
    first, second = _read(task, prompt)
    assert (first.id, first.answers, second.answers) == ("my.jsonl:1", ("1",), ("2",))
    assert task.name == "prompts:my.jsonl"
    assert first.length == len(prompt.encode(prompt.text("One?", "")))
    assert [task.score(first, said).value for said in ("It is 1.", "It is 11.")] == [1, 0]
    assert task.describe()["version"] == 2  # the first scorer found 1 in 11
    none = _read(_task(tmp_path, {"prompt": "One?"}, {"prompt": "Two?"}), prompt)
    assert [sample.answers for sample in none] == [(), ()]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "answer": "b"}, {"prompt": "c"}], "line 2: there is no 'answer', and"),
        (
            [{"answer": "b", "id": 3}],
            "line 1: there is no column 'prompt'; expected 'prompt' and, if known, 'answer'; the"
            " columns are answer, id",
        ),
        (
            [{"context": "a", "question": "b?", "answers": ["c"]}],
            "line 1: there is no column 'prompt' but a 'context', as 'swaa eval' reads it; give"
            " --data jsonl:my.jsonl, or",
        ),
        ([{"prompt": " "}], "line 1: 'prompt' is empty"),
        ([{"prompt": "a", "answer": ""}], "line 1: 'answer' must be a text or a list of texts"),
        ([{"prompt": "a", "max_new_tokens": 0}], "line 1: 'max_new_tokens' is 0"),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path, prompt, rows, message):
    with pytest.raises(ValueError, match=message):
        _read(_task(tmp_path, *rows), prompt)


def test_gold_answers_are_found_by_words_and_own_answers_by_overlap(tmp_path):
    task = _task(tmp_path, {"prompt": "a"})
    assert task.score(_sample(0, answers=("12", "x")), "It is 12.").value == 0.5
    assert not task.score(_sample(0), None).answered
    own = _sample(0, answers=("the red fox runs",), gold="no")
    assert task.score(own, "the red fox runs").value == 1
    assert task.score(own, "the red fox sleeps").value == 0.75
    assert word_overlap("a b", "c d") == 0


def test_given_samples_tell_runs_apart_by_samples_and_answers():
    a, b = GivenSamples(Needle(), (SAMPLES[0],)), GivenSamples(Needle(), (SAMPLES[1],))
    c = GivenSamples(Needle(), (_sample(0, answers=("13",)),))
    assert len({str(task.describe()) for task in (a, b, c)}) == 3
    assert a.samples(None, length=None, count=None, seed=0) == [SAMPLES[0]]
    assert (a.name, a.needs_length, a.needs_judge) == ("needle", True, False)
    assert a.score(_sample(0), "12").value == 1
