import pytest

from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Needle, Sample, place
from swaa.evaluation.tasks import TASKS, find_tasks
from swaa.evaluation.tasks.facts import listed, share_found
from swaa.evaluation.tasks.haystack import read_filler, spread

GENERATED = (
    "needle", "multikey", "multikey:7", "multiquery", "multivalue", "multivalue:2",
    "variable_tracking", "recall",
)  # fmt: skip


def _task(name):
    (task,) = find_tasks([name])
    return task


@pytest.mark.parametrize("kind", ["bytes", "words", "chat"])
@pytest.mark.parametrize("name", GENERATED)
def test_prompts_have_exactly_the_length_asked_for(name, kind, tokenizers):
    prompt = Prompt(tokenizer=tokenizers[kind])
    for length in (1501, 2048):
        for sample in _task(name).samples(prompt, length=length, count=2, seed=3):
            tokens = prompt.count(sample.context, sample.question, sample.answer_prefix)
            assert tokens == sample.length == length


@pytest.mark.parametrize("name", GENERATED)
def test_needles_lie_where_the_sample_says(name, prompt):
    for sample in _task(name).samples(prompt, length=1800, count=3, seed=0):
        text = prompt.text(sample.context, sample.question, sample.answer_prefix)
        ids = prompt.encode(text)
        assert sample.needles
        shown = [
            prompt.tokenizer.decode(ids[1800 - n.distance : 1800 - n.distance + n.tokens])
            for n in sample.needles
        ]
        for answer in sample.answers:
            assert sum(answer in words for words in shown) >= 1
        assert sample.needle_distance == max(n.distance for n in sample.needles)


@pytest.mark.parametrize("name", GENERATED)
def test_right_answers_score_1_and_none_scores_0(name, prompt):
    task = _task(name)
    (sample,) = task.samples(prompt, length=1500, count=1, seed=1)
    gold = "They are " + ", ".join(sample.answers) + "."
    assert task.score(sample, gold).value == 1
    assert task.score(sample, "I do not know.").value == 0
    for nothing in ("", None):
        score = task.score(sample, nothing)
        assert (score.value, score.answered) == (0, False)


@pytest.mark.parametrize("name", GENERATED)
def test_samples_depend_on_the_seed_and_not_on_how_many_there_are(name, prompt):
    task = _task(name)
    few = task.samples(prompt, length=1500, count=2, seed=0)
    assert task.samples(prompt, length=1500, count=3, seed=0)[:2] == few
    assert task.samples(prompt, length=1500, count=2, seed=1) != few
    assert len({sample.id for sample in few}) == 2


def test_depths_reach_from_the_sinks_to_the_end(prompt):
    samples = _task("needle").samples(prompt, length=2048, count=8, seed=0)
    distances = sorted(sample.needle_distance for sample in samples)
    assert 2048 - distances[-1] < 150
    assert distances[0] < 2048 / 4
    assert sorted(map(spread, range(8))) == [index / 8 for index in range(8)]


def test_long_prompts_repeat_the_text(tokenizers):
    prompt = Prompt(tokenizer=tokenizers["words"])
    (sample,) = _task("needle").samples(prompt, length=60_000, count=1, seed=0)
    assert len(sample.context) > 2 * len(read_filler())


def test_columns_are_uniform(prompt):
    (sample,) = _task("needle").samples(prompt, length=1500, count=1, seed=0)
    assert list(sample.columns()) == [
        "context", "question", "answer_prefix", "answers", "max_new_tokens", "task", "length",
        "needle_distance",
    ]  # fmt: skip


def test_multikey_refuses_a_list_of_all_numbers(prompt):
    task = _task("multikey")
    (sample,) = task.samples(prompt, length=1500, count=1, seed=0)
    everything = f"{sample.answers[0]} {sample.tags['others']}"
    assert task.score(sample, everything).value == 0


@pytest.mark.parametrize(
    ("answers", "text", "value"),
    [
        (["1234567"], "It is 1,234,567.", 1),
        (["1234567"], "It is 12345678.", 0),
        (["12", "34"], "12 and 341", 0.5),
        (["ABCDE"], "ABCDEF", 0),
    ],
)
def test_answers_are_found_as_whole_words(answers, text, value):
    assert share_found(answers, text).value == value


def test_listed():
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == [
        "a", "a and b", "a, b and c",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("needles", "expected"),
    [
        ([], None),
        ([(100, 4)], "sinks"),
        ([(97, 4)], "beyond"),
        ([(33, 4)], "beyond"),
        ([(32, 4)], "window"),
        ([(100, 4), (20, 4)], "window"),
        ([(20, 4), (60, 4)], "beyond"),
    ],
)
def test_place_tells_what_the_last_prompt_row_sees(needles, expected):
    assert place(100, needles, window=32, sink_tokens=6) == expected
    sample = Sample(
        id="a", task="t", length=100, context="", question="", answer_prefix="", answers=(),
        max_new_tokens=1, needles=tuple(Needle(*needle) for needle in needles),
    )  # fmt: skip
    assert sample.place(window=32, sink_tokens=6) == expected


def test_every_task_is_a_module():
    for name in TASKS:
        assert __import__(f"swaa.evaluation.tasks.{name}", fromlist=["make"]).make


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nedle", "unknown task 'nedle'; did you mean 'needle'"),
        ("needle:3", "needle:3: the task takes no argument"),
        ("multikey:x", "multikey:x: expected a whole number from 1 to 32"),
    ],
)
def test_unusable_task_names(name, message):
    with pytest.raises(ValueError, match=message):
        find_tasks([name])


def test_prompts_too_short_for_the_question(prompt):
    with pytest.raises(ValueError, match="a prompt of 64 tokens has no room"):
        _task("needle").samples(prompt, length=64, count=1, seed=0)
    with pytest.raises(ValueError, match="no room for a list of pairs"):
        _task("recall").samples(prompt, length=64, count=1, seed=0)
    with pytest.raises(ValueError, match="say of how many tokens"):
        _task("recall").samples(prompt, length=None, count=1, seed=0)


def test_one_token_is_added_behind_a_space_that_counts_for_none(prompt):
    for seed in (0, 3):
        for sample in _task("multikey").samples(prompt, length=2000, count=30, seed=seed):
            assert prompt.count(sample.context, sample.question, sample.answer_prefix) == 2000
