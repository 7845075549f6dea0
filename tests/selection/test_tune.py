import dataclasses
import json
import re
from fractions import Fraction

import pytest
from transformers import MambaConfig, MambaForCausalLM

from swaa.cli import main
from swaa.config import SWAAConfig
from swaa.evaluation.prompt import Prompt
from swaa.evaluation.tasks.rows import DataFile
from swaa.selection import report
from swaa.selection.budget import Budget, Cost
from swaa.selection.own_prompts import OwnPrompts
from swaa.selection.passes import SharedPasses
from swaa.selection.report import Point, choose, pareto
from swaa.selection.tune import tune
from swaa.selection.tuning import Tuning, default_method
from tests.selection.conftest import write_lines


def _files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*.json*")}


def test_tuning_writes_a_recipe_that_is_within_the_budget_and_can_be_used(
    checkpoint, tmp_path, capsys, prints, kept_rows, words
):
    asked = words("--budget", "layers=1/4", "--budget", "kv=90%", "--baselines")
    assert main(asked) == 0
    out = capsys.readouterr()
    recipe = json.loads((tmp_path / "tuned.json").read_text())
    config = SWAAConfig.from_dict(recipe["config"])
    assert config == SWAAConfig.load(tmp_path / "tuned.json")
    assert "every:4+0 layers=1of4" in out.out
    assert f"--recipe {tmp_path / 'tuned.json'} --file report.txt" in out.out
    assert recipe["provenance"]["model"] == checkpoint.name
    (counted,) = recipe["provenance"]["measured_on"]
    right = r"prompts:my.jsonl: \d of 5 right \(95 % interval \d+ to \d+ %\),"
    assert re.match(right + r" full attention 5 of 5 \(57 to 100 %\)", counted)
    assert f"held out, {counted}" in out.out.splitlines()
    assert "swaa tune: only 5 samples were held out, so that" in out.err
    assert (tmp_path / "tuned.png").stat().st_size > 1000
    assert "100 %" in out.err

    rows = kept_rows()
    by_name = {row["recipe"]: row for row in rows}
    assert by_name["full"]["right"] == by_name["full"]["samples"] == 5
    assert by_name["tuned layers=1of4"]["full_layers"] <= 0.25
    assert by_name["tuned kv=9of10"]["kv_bytes"] <= 0.9
    assert any(row["source"] == "periodic" for row in rows)
    assert all(0 <= row["p_against_full"] <= 1 for row in rows)

    # The same again measures nothing, and says the same.
    files = _files(tmp_path / "results")
    again = prints(*asked)
    assert [line for line in again.splitlines() if "Time" not in line] == [
        line for line in out.out.splitlines() if "Time" not in line
    ]
    now = _files(tmp_path / "results")
    assert now.keys() == files.keys()
    assert all(now[path] == files[path] for path in files if "-tune-" not in path.name)

    use = ["generate", str(checkpoint), "--recipe", str(tmp_path / "tuned.json")]
    (tmp_path / "report.txt").write_text("the river runs " * 20)
    ask = ["--file", str(tmp_path / "report.txt"), "--question", "What?", "--max-new-tokens", "2"]
    assert main([*use, *ask]) == 0


def test_no_set_measured_within_a_budget_is_better_than_the_choice(tmp_path, kept_rows, words):
    budgets = ["layers=1/2", "layers=3/4", "decode=1/2", "kv=95%"]
    given = [word for budget in budgets for word in ("--budget", budget)]
    assert main(words(*given, "--baselines", "--objective", "nll")) == 0
    (scores,) = (tmp_path / "results" / "tune").glob("*-scores-*.jsonl")
    records = [json.loads(line) for line in scores.read_text().splitlines()]
    measured = [r for r in records if r["id"] != "full" and not r["id"].endswith("-128")]
    names = [row for row in kept_rows() if row["source"] == "search"]
    depth = max(layer for r in measured for layer in r["full"]) + 1
    for budget in budgets[:2]:
        label = f"tuned {budget.replace('/', 'of')}"
        (row,) = [row for row in names if label in (row["recipe"], *row["also"])]
        most = float(Fraction(budget.removeprefix("layers="))) * depth
        # What slides decodes in full, as the recipe says.
        sets = [r for r in measured if len(r["full"]) + len(r["decode"]) == depth]
        best = min(sum(r["nll"]) / 4 for r in sets if len(r["full"]) <= most)
        assert row["nll"] == pytest.approx(best, abs=1e-4)


def test_baselines_fill_what_a_budget_of_bytes_pays_for(capsys, kept_rows, words):
    asked = words("--budget", "layers=0,kv=95%", "--baselines")
    assert main(asked) == 0
    assert "adds nothing" not in capsys.readouterr().err
    rows = kept_rows()
    named = {name for row in rows for name in (row["recipe"], *row["also"])}
    assert {"answer_nll layers=0,kv=19of20", "kl_out layers=0,kv=19of20"} <= named
    assert any(name.startswith(("every:", "odd")) for name in named)
    assert all(row["kv_bytes"] <= 0.95 for row in rows if row["source"] not in ("full", "base"))


@pytest.mark.parametrize("budget", ["layers=1/4", "layers=0", "decode=1/4"])
def test_the_recipe_without_full_layers_is_there_to_compare_with(prints, budget, words):
    asked = words("--budget", budget, "--full-layers", "odd", "--json")
    rows = json.loads(prints(*asked, "--method", "kl"))["rows"]
    (row,) = [row for row in rows if "no full layers" in (row["recipe"], *row["also"])]
    base = SWAAConfig(window=70, sink_tokens=2, full_decode=True, dense_tail=4)
    assert SWAAConfig.from_dict(row["swaa"]) == base
    chosen = [row for row in rows if row["source"] == "kl"]
    assert [row["recipe"] for row in chosen] == [f"tuned {budget.replace('/', 'of')}"]
    assert (row["source"] == "base") == (budget != "layers=0")


def test_baselines_say_where_they_add_nothing(capsys, words):
    asked = words("--baselines", "--budget", "layers=0")
    assert main(asked) == 0
    out = capsys.readouterr()
    assert [line for line in out.err.splitlines() if "swaa tune: --" in line] == [
        "swaa tune: --baselines adds nothing to layers=0: it pays for no full layer, so that there"
        " is none to choose"
    ]
    assert "tuned layers=0" in out.out


def test_progress_never_goes_back(loaded, data, tmp_path):
    shares, counts = [], []

    def progress(share, label):
        shares.append(share)
        if label.startswith("search"):
            counts.append(int(label.split()[1]))

    tuning = Tuning(
        tasks=[OwnPrompts(DataFile.find("swaa tune", str(data)))],
        prompt=Prompt(tokenizer=loaded.tokenizer),
        base=SWAAConfig(window=30, sink_tokens=2, full_decode=True, dense_tail=4),
        budgets=[Budget.parse(text) for text in ("layers=1/4", "kv=90%", "layers=1/2")],
        samples=4,
        baselines=("all",),
        folder=tmp_path / "results",
    )
    tune(loaded, "tiny", tuning, progress=progress)
    assert shares == sorted(shares)
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("method", ["kl_out", "answer_nll", "lazy_ratio"])
def test_a_ranking_knows_how_many_sets_it_measures(tmp_path, capsys, method, words):
    budgets = ("layers=1/4", "layers=1/2", "decode=1/2")
    given = [word for budget in budgets for word in ("--budget", budget)]
    asked = words(*given, "--method", method)
    assert main(asked) == 0
    err = capsys.readouterr().err
    (most,) = re.findall(
        r"^swaa tune: 4 samples to tune on, 5 others held out, \d+ to \d+ tokens; budgets: 3,"
        r" at most (\d+) sets of layers to measure$",
        err,
        re.MULTILINE,
    )
    (scores,) = (tmp_path / "results" / "tune").glob("*-scores-*.jsonl")
    measured = len(scores.read_text().splitlines()) - 1  # full attention is no set
    # Of a budget's two spaces each chooses a set, which may be one that is measured already.
    assert measured <= int(most) + 1  # that without full layers is measured beside
    assert int(most) <= measured + 4
    assert main(asked) == 0
    assert f" sets of layers to measure; {measured} found measured\n" in capsys.readouterr().err


def test_an_interrupted_tuning_resumes_where_it_stopped(tmp_path, capsys, monkeypatch, words):
    asked = words("--budget", "layers=1/4", "--method", "search")
    real, done = SharedPasses._run, []

    def stop_after(limit):
        def run(self, batch, plans, base):
            done.append(plans)
            if len(done) > limit:
                raise KeyboardInterrupt
            return real(self, batch, plans, base)

        monkeypatch.setattr(SharedPasses, "_run", run)

    stop_after(6)
    assert main(asked) == 130
    err = capsys.readouterr().err
    assert err.endswith("swaa tune: interrupted; the same command goes on where it stopped\n")
    assert "; budgets: 1, about " in err
    first = len(done)
    (scores,) = (tmp_path / "results" / "tune").glob("*-scores-*.jsonl")
    kept = scores.read_text().splitlines()
    assert 0 < len(kept) < first
    stop_after(10_000)
    assert main(asked) == 0
    assert f"; {len(kept) - 1} found measured\n" in capsys.readouterr().err
    assert scores.read_text().splitlines()[: len(kept)] == kept
    ids = [json.loads(line)["id"] for line in scores.read_text().splitlines()]
    assert len(ids) == len(set(ids))


def test_full_layers_alone_are_ranked(prints, words):
    asked = words("--budget", "layers=1/2", "--held-out", "4", "--json")
    rows = json.loads(prints(*asked))["rows"]
    assert [row["source"] for row in rows] == ["full", "kl_out", "base"]


@pytest.mark.parametrize(
    ("budgets", "more"),
    [
        ((), {}),
        (("layers=1/4", "kv=50%"), {}),
        (("layers=0",), {}),
        (("layers=1/4",), {"tries": True}),
        (("layers=1/4",), {"units": "both"}),
    ],
)
def test_everything_else_is_searched(budgets, more):
    parsed = [Budget.parse(text) for text in budgets]
    given = {"tries": False, "units": "layers", **more}
    assert default_method(parsed, **given) == "search"
    assert default_method([Budget.parse("layers=1/4")], tries=False, units="layers") == "kl_out"


def test_a_signal_can_choose_the_layers(prints, words):
    asked = words("--budget", "layers=1/2", "--method", "lazy_ratio", "--json")
    printed = json.loads(prints(*asked))
    assert len(printed["recipe"]["config"]["full_layers"]) == 2
    assert printed["rows"][1]["source"] == "lazy_ratio"
    assert set(printed["seconds"]) == {"data", "search", "verify", "further"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--keep", "1.5"], "--keep 1.5: expected a share above 0"),
        (["--samples", "7"], "9 usable samples, too few to tune on 7 and report on 4 others"),
        (
            ["--length", "20"],
            "has 0 usable samples, too few to tune on 4 and report on 4 others: 9 more are longer"
            " than --length: raise it, give more lines, or lower",
        ),
        (["--budget", "kv=1/100"], "the budget kv=1/100 cannot be met: without any full layer"),
        (["--budget", "size=1"], "budget 'size=1': expected layers=SHARE"),
        (["--window", "400"], "give longer prompts, or lower --window or --sink-tokens"),
        (["--window", "400", "--length", "300"], "raise --length (now 300), or lower --window or"),
        (
            ["--try", "windows=3"],
            "--try windows=3: expected one of window, sink_tokens, dense_tail",
        ),
        (["--method", "magic"], "unknown method 'magic'; give search, or one of answer_nll"),
        (["--batch-size", "0"], "--batch-size 0: expected a whole number of at least 1"),
        (["--data", "nothing.jsonl"], "no such file: nothing.jsonl"),
        (["--data", "perplexity", "--length", "300"], "perplexity has no answers to tune on"),
        (["--data", "needle", "--length", "1024"], "sees 1024 at once: lower --length"),
        (["--report", "needle, recall"], "sees 1024 at once: lower --length"),
        (
            ["--full-decode", "all", "--decode-keys", "64"],
            "the recipe has decode_keys, which no search keeps yet",
        ),
        (
            ["--selected-layers", "all", "--selected-keys", "64"],
            "the recipe has selected layers, which no search keeps yet",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, more, message, words):
    assert main(words(*more)) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("swaa tune:")]
    assert len(err) == 1
    assert message in err[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "2"], "--samples 2: expected at least 4 samples"),
        (["--held-out", "3"], "--held-out 3: expected at least 4 samples"),
        (["--held-out", "0"], "--held-out 0 reports nothing by which to choose among budgets"),
        (["--unit", "heads", "--budget", "layers=1/2"], "the budget layers=1/2 buys no KV heads"),
        (["--keep", "0"], "--keep 0.0: expected a share above 0"),
        (["--method", "magic"], "unknown method 'magic'; give search, or one of answer_nll"),
        (["--out", "no/such/tuned.json"], "--out no/such/tuned.json: there is no folder no/such;"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_no_model_is_loaded_for_a_mistake(refusal, more, message, words):
    assert message in refusal(*words(*more, model="m"))


def test_a_model_that_cannot_be_adapted_is_refused(checkpoint, tmp_path, refusal, words):
    folder = tmp_path / "mamba"
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(folder)
    for file in checkpoint.glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    assert "swaa tune: Mamba" in refusal(*words(model=folder))


def test_full_attention_that_answers_nothing_leaves_nothing_to_keep(data, tmp_path, capsys, words):
    lines = [json.loads(line) | {"answer": "never said"} for line in data.read_text().splitlines()]
    write_lines(data, lines)
    assert main(words("--budget", "layers=0")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "full attention itself answers none" in error
    assert error.endswith("; no recipe was written")
    assert not (tmp_path / "tuned.json").exists()


def test_an_earlier_recipe_is_not_taken_for_this_runs(tmp_path, capsys, prints, monkeypatch, words):
    out = tmp_path / "tuned.json"
    SWAAConfig(window=33).save(out)
    before = out.read_bytes()

    def choose(points, full, keep, *, average):
        raise ValueError("no recipe within the budget keeps enough")

    asked = words("--budget", "layers=0")
    with monkeypatch.context() as patched:
        patched.setattr(report, "choose", choose)
        assert main(asked) == 2
    captured = capsys.readouterr()
    assert "kept %" in captured.out
    assert captured.err.splitlines()[-1] == (
        "swaa tune: no recipe within the budget keeps enough; no recipe was written;"
        f" {out} is an earlier one and stays as it was"
    )
    assert out.read_bytes() == before

    assert main(asked) == 0
    replaced = "it replaces the one that was there: window 33, 0 sinks"
    assert replaced in capsys.readouterr().out.splitlines()
    assert "replaces" not in prints(*asked)


@pytest.mark.usefixtures("no_model")
def test_a_file_that_is_no_recipe_is_never_replaced(tmp_path, refusal, words):
    (tmp_path / "tuned.json").write_text('{"my": "notes"}')
    assert "tuned.json exists and is not a recipe, so it will not be replaced: name" in refusal(
        *words(model="m")
    )
    assert (tmp_path / "tuned.json").read_text() == '{"my": "notes"}'


def _point(name, flops, kv, scores):
    return Point(
        name=name,
        source="search",
        config=SWAAConfig(window=8),
        cost=Cost(0, 0, flops, kv),
        nll=1.0,
        kl=0.0,
        exact=0.0,
        scores={"needle": scores},
    )


FULL = dataclasses.replace(_point("full", 1.0, 1.0, [1, 1, 1, 1]), source="full")
CHEAP = _point("cheap", 0.2, 0.2, [1, 0, 0, 0])
MIDDLE = _point("middle", 0.4, 0.5, [1, 1, 1, 0])
DEAR = _point("dear", 0.5, 0.5, [1, 1, 0, 0])


def test_the_cheapest_recipe_that_keeps_enough_is_chosen():
    assert choose([CHEAP, MIDDLE, DEAR], FULL, 0.7) is MIDDLE
    assert choose([CHEAP, MIDDLE, DEAR], FULL, 0.2) is CHEAP


def test_where_nothing_keeps_enough_the_best_is_named():
    with pytest.raises(ValueError, match=r"keeps 95% .* the best, middle .*, keeps 75%: raise --b"):
        choose([CHEAP, MIDDLE, DEAR], FULL, 0.95)


def test_counts_of_answers_that_are_partly_right_show_the_mean_too():
    ours = _point("ours", 0.2, 0.2, [1, 0.5, 0, 1])
    assert report.counts(ours, FULL) == [
        "needle: 2 of 4 right (95 % interval 15 to 85 %), full attention 4 of 4 (51 to 100 %);"
        " mean score 62.5 %, full attention 100.0 %"
    ]


@pytest.mark.parametrize(
    ("scores", "share", "low", "high"),
    [
        ([1, 1, 1, 1], 2, 1.0202, 2),  # of a full attention that answers half
        ([0, 0, 0, 0], 0, 0, 0.9798),
        ([1, 0.5, 0, 1], 1.25, 0.4389, 1.8162),
    ],
)
def test_the_interval_of_what_is_kept(scores, share, low, high):
    full = dataclasses.replace(FULL, scores={"needle": [1, 1, 0, 0]})
    ours = _point("ours", 0.2, 0.2, scores)
    assert report.kept(ours, full) == share
    assert report.kept_between(ours, full) == pytest.approx((low, high), abs=1e-4)


def test_few_samples_are_doubted_and_enough_are_not():
    assert report.doubt(_point("full", 1, 1, [1] * 20)) is None
    some = dataclasses.replace(FULL, scores={"needle": [1] * 10, "multikey": [1] * 9})
    assert report.doubt(some) == (
        "only 9 samples of a task were held out, so that what recipes keep is known roughly at"
        " best: give more prompts, or raise --held-out, to 20 or more"
    )


def test_the_pareto_front_holds_what_nothing_beats():
    assert pareto([FULL, CHEAP, MIDDLE, DEAR]) == [FULL, CHEAP, MIDDLE]


def test_rows_compare_on_the_same_samples():
    ours, theirs = report.rows([MIDDLE, CHEAP], FULL, {"held out": 100})
    assert report.beats(ours, theirs) == (50.0, 0.5)
    assert (ours["retention"], ours["bits"]) == (75.0, "1110")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"prompt": "a", "answer": "b"},
            "swaa {verb}: q.jsonl, line 1: there is no column 'context'; expected 'context',"
            " 'question' and 'answers'; the columns are prompt, answer; whole prompts are read by"
            " 'swaa tune --data FILE'",
        ),
        (
            {"text": "a"},
            "swaa {verb}: q.jsonl, line 1: there is no column 'context'; expected 'context',"
            " 'question' and 'answers'; the columns are text",
        ),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_a_file_of_the_other_format_is_named_before_a_model_is_loaded(
    tmp_path, capsys, line, message
):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(line))
    for verb, flag in (("eval", "--tasks"), ("tune", "--data")):
        assert main([verb, "m", flag, f"jsonl:{file}"]) == 2
        assert capsys.readouterr().err == f"{message.format(verb=verb)}\n"
