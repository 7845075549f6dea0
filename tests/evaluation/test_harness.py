import dataclasses
import json
import random
import subprocess
import sys

import pytest
import torch

from swaa.adaptation import adapt, restore
from swaa.config import SWAAConfig
from tests.integrations.loop_model import Rows, build_masks, loop_logits, positions, rows_of

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'swaa[lm-eval]'")

# The harness's own imports warn.
pytestmark = pytest.mark.filterwarnings("default")

CONFIG = SWAAConfig(window=24, sink_tokens=2, full_decode=True, dense_tail=5)
ARGS = {"recipe": "fast", "window": 24, "sink_tokens": 2, "dense_tail": 5, "device": "cpu"}

TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "x",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
}


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    """A saved model, tasks, and documents of several lengths for them."""
    path = tmp_path_factory.mktemp("harness")
    loaded.model.save_pretrained(path / "model")
    loaded.tokenizer.save_pretrained(path / "model")
    chance = random.Random(1)
    letters = "abcdefghij klmnop"
    with (path / "data.jsonl").open("w") as file:
        for length in (90, 17, 61, 33, 70):
            text = "".join(chance.choices(letters, k=length)).strip()
            choices = [" " + "".join(chance.choices(letters[:10], k=k)) for k in (1, 9, 4)]
            file.write(json.dumps({"text": text, "choices": choices, "gold": 1}) + "\n")
    (path / "tasks").mkdir()
    files = {"data_files": {"test": str(path / "data.jsonl")}, "cache_dir": str(path / "cache")}
    shared = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    for name, task in TASKS.items():  # JSON is YAML
        text = json.dumps({"task": f"swaa_{name}", **shared, **task})
        (path / "tasks" / f"{name}.yaml").write_text(text)
    return path


@pytest.fixture(scope="module")
def documents(folder):
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]


def _evaluate(folder, task, **changes):
    import lm_eval
    from lm_eval.tasks import TaskManager

    import swaa.evaluation.harness  # noqa: F401 # registers the model

    args = {**ARGS, **changes}
    if args["window"] is None:  # knobs without a window are refused
        args = {"recipe": args["recipe"], "window": None, "device": "cpu"}
    return lm_eval.simple_evaluate(
        model="swaa",
        model_args={"pretrained": str(folder / "model"), **args},
        tasks=[task],
        batch_size=4,
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )


def _ids(loaded, text):
    return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]


def _expected(loaded, ids, rows, scored):
    """Log-probabilities of the last ``scored`` ids and whether they are greedy, by plain loops."""
    total = len(ids) - 1
    config = dataclasses.replace(CONFIG, full_decode=True)
    masks = build_masks(config, ["full_attention"] * 2, [0], total, rows)
    logits = loop_logits(loaded.model, torch.tensor([ids[:-1]]), masks, positions([0], total))
    likely = logits[0].log_softmax(-1)
    places = range(total - scored, total)
    return (
        sum(float(likely[place, ids[place + 1]]) for place in places),
        all(int(likely[place].argmax()) == ids[place + 1] for place in places),
    )


def test_each_row_of_a_batch_has_its_own_context(loaded, folder, documents):
    samples = _evaluate(folder, "swaa_choice")["samples"]["swaa_choice"]
    full = _evaluate(folder, "swaa_choice", recipe="full", window=None)["samples"]["swaa_choice"]
    moved = 0
    for sample, plain, document in zip(samples, full, documents, strict=True):
        context = _ids(loaded, document["text"])
        for place, choice in enumerate(document["choices"]):
            ids = _ids(loaded, document["text"] + choice)
            rows = rows_of(len(context), CONFIG.dense_tail, len(ids) - 1)
            expected = _expected(loaded, ids, rows, len(ids) - len(context))
            ((likely, greedy),) = sample["resps"][place]
            assert likely == pytest.approx(expected[0], rel=1e-5)
            assert greedy == expected[1]
            moved += abs(likely - plain["resps"][place][0][0]) > 1e-4
    assert moved >= 9  # a test that full attention would pass proves nothing


def test_answers_are_those_of_generate(loaded, folder, documents):
    samples = _evaluate(folder, "swaa_answer")["samples"]["swaa_answer"]
    adapt(loaded.model, CONFIG, quiet=True)
    try:
        for sample, document in zip(samples, documents, strict=True):
            ids = torch.tensor([_ids(loaded, document["text"])])
            output = loaded.model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
            text = loaded.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
            assert sample["resps"][0][0] == text.partition("\n\n")[0]
    finally:
        restore(loaded.model)


def test_rolling_text_is_all_prompt(loaded, folder, documents):
    samples = _evaluate(folder, "swaa_read")["samples"]["swaa_read"]
    for sample, document in zip(samples, documents, strict=True):
        ids = [loaded.tokenizer.eos_token_id, *_ids(loaded, document["text"])]
        total = len(ids) - 1
        rows = Rows(set(range(total - CONFIG.dense_tail, total)), set())
        expected, _ = _expected(loaded, ids, rows, total)
        assert sample["resps"][0][0] == pytest.approx(expected, rel=1e-5)


def test_long_contexts_lose_their_beginning(loaded, folder, documents):
    samples = _evaluate(folder, "swaa_choice", max_length=40)["samples"]["swaa_choice"]
    document = documents[0]
    for place, choice in enumerate(document["choices"]):
        scored = len(_ids(loaded, choice))
        ids = _ids(loaded, document["text"] + choice)[-41:]
        rows = rows_of(len(ids) - scored, CONFIG.dense_tail, len(ids) - 1)
        expected, _ = _expected(loaded, ids, rows, scored)
        assert samples[0]["resps"][place][0][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": "auto"}, "batch_size is 'auto'; expected a whole number"),
        ({"recipe": "full", "window": None}, "sink_tokens, dense_tail would do nothing: there is"),
        ({"recipe": "ful"}, "unknown recipe 'ful'; did you mean 'full'?"),
        ({"max_length": 4}, "a continuation has 10 tokens; the model sees 4: set max_length"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_named(folder, changes, message):
    from swaa.evaluation.harness import AdaptedModel

    def run():
        model = AdaptedModel(str(folder / "model"), **{**ARGS, **changes})
        model._loglikelihood_tokens([(None, [5], [6] * 10)], disable_tqdm=True)

    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        run()


def test_knobs_without_a_window_are_refused(folder):
    from swaa.evaluation.harness import AdaptedModel

    with pytest.raises(ValueError, match="sink_tokens would do nothing: the recipe is full"):
        AdaptedModel(str(folder / "model"), recipe="full", sink_tokens=4)


@pytest.mark.slow
def test_the_command_line_of_the_harness(folder):
    words = ["--model", "swaa", "--tasks", "swaa_choice", "--include_path", str(folder / "tasks")]
    words += ["--device", "cpu", "--batch_size", "2"]
    args = f"pretrained={folder / 'model'},recipe=fast,window=24"
    done = subprocess.run(
        [sys.executable, "-m", "swaa.evaluation.harness", *words, "--model_args", args],
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "adapted 2 of 2 layers: window 24" in done.stdout
    assert "swaa_choice" in done.stdout
