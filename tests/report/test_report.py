"""What goes into the page: every run, every number as its file has it, and what is wrong."""

import dataclasses
import json
import re
import shutil
import sys

import pytest

from swaa.cli import main
from swaa.report import page, write_report
from swaa.report.paper import read_paper
from swaa.results import save
from tests.documents import ROOT
from tests.report import runs


def content(page):
    """What the page embeds."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def show(folder, *some):
    """The page of some runs, as data."""
    runs.write(some, folder / "results")
    report = write_report(folder / "results", folder / "report.html")
    assert report.problems == ()
    return content(report.path.read_text("utf-8"))


@pytest.fixture
def shown(tmp_path):
    return show(tmp_path, *runs.all_runs())


def _of(items, **values):
    return [one for one in items if all(one[name] == value for name, value in values.items())]


def test_every_run_is_there_with_its_files(shown, tmp_path):
    names = sorted(path.relative_to(tmp_path / "results") for path in tmp_path.rglob("*.json"))
    assert [run["path"] for run in shown["runs"]] == [name.as_posix() for name in names]
    for run in shown["runs"]:
        kept = json.loads((tmp_path / run["files"]["result"]).read_text("utf-8"))
        assert {key: run[key] for key in kept} == kept


def test_evaluations_are_points_with_their_intervals(shown):
    points = _of(shown["answers"], setting="fast", time=_MEDIAN)
    (point,) = points
    assert (point["accuracy"], point["count"], point["seconds"]) == (0.8, "8 of 10", 1.0)
    assert (point["low"], point["high"]) == (pytest.approx(0.6), pytest.approx(1.0))
    assert point["detail"] == "window 64, 4 sinks, full decode, dense tail 8"
    same = _of(shown["answers"], group=point["group"])
    assert sorted(one["setting"] for one in same) == ["fast", "full"]
    assert [one["setting"] for one in same if one["full"]] == ["full"]


_MEDIAN = "time to first token, median over the samples"


def test_gathered_evaluations_are_a_point_a_setting(shown):
    (run,) = [
        i for i, run in enumerate(shown["runs"]) if run["path"].startswith("eval/tiny-multik")
    ]
    points = {one["setting"]: one for one in _of(shown["answers"], run=run)}
    assert {name: one["accuracy"] for name, one in points.items()} == {"full": 0.9, runs.EVIL: 0.7}
    assert shown["runs"][run]["setting"] == "2 settings"


def test_times_of_gathered_runs_are_no_cost(shown):
    """Others may have run on the machine meanwhile; arithmetic is as good on any machine."""
    points = [one for one in shown["answers"] if runs.EVIL in one["group"] + one["setting"]]
    (sliding,) = points
    assert (sliding["seconds"], sliding["seconds_low"]) == (None, None)
    assert sliding["time"].startswith("not timed: gathered runs may have shared a machine")
    # Rows before the tail see at most 68 keys, the tail's 8 rows everything.
    rows = [min(i + 1, 68) for i in range(2040)] + [i + 1 for i in range(2040, 2048)]
    assert sliding["keys_share"] == pytest.approx(sum(rows) / (2048 * 2049 / 2))
    assert (sliding["flops_share"], sliding["kv_share"]) == (None, 1.0)
    groups = {one["group"] for one in points}
    full = [one for one in shown["answers"] if one["group"] in groups and one["full"]]
    assert [one["keys_share"] for one in full] == [1.0]
    timed = _of(shown["measurements"], measure="time to first token, median over samples")
    assert {one["tokens"] for one in timed} == {1024}  # the runs that were not gathered


def test_times_spread_as_the_samples_say(tmp_path):
    samples = [{"first_token_s": second} for second in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    save(runs.evaluation("fast", runs.SLIDING, 8), samples=samples, folder=tmp_path / "results")
    (point,) = show(tmp_path)["answers"]
    assert (point["seconds_low"], point["seconds_high"]) == (2.0, 5.0)


def test_costs_that_a_run_wrote_are_shown_though_layers_differ(tmp_path):
    config = {**runs.SLIDING, "full_layers": "odd"}
    result = runs.evaluation("odd", config, 8)
    costs = {"flops_share": 0.75, "keys_share": 0.5, "kv_share": 0.25}
    row, *others = result.rows
    priced = dataclasses.replace(result, rows=({**row, **costs}, *others))
    for one, expected in ((result, dict.fromkeys(costs)), (priced, costs)):
        save(one, samples=[], folder=tmp_path / "results")
        (point,) = show(tmp_path)["answers"]
        assert {name: point[name] for name in costs} == expected


def test_an_evaluation_tells_full_attention_beside_what_slides(shown):
    outcomes = {run["path"].rpartition("-")[0]: run["outcome"] for run in shown["runs"]}
    assert outcomes["eval/tiny-fast-multikey-1024"] == "mean score 85 %"
    assert outcomes["eval/tiny-multikey-2048"] == (
        f"full attention: mean score 95 %; {runs.EVIL}: mean score 75 %"
    )


@pytest.mark.parametrize(
    ("right", "outcome"),
    [
        (8, "highest of 3 settings here: 8 of 10 right (2 settings, fewest keys: cheap)"),
        (7, "highest of 3 settings here: 8 of 10 right (cheap)"),
    ],
)
def test_of_equally_good_settings_the_number_and_the_cheapest_are_named(tmp_path, right, outcome):
    one = runs.gathered()
    dearer = runs.SLIDING | {"window": 512}
    settings = {"dearer": dearer, "cheap": runs.SLIDING, "bad": runs.SLIDING, "full": runs.FULL}
    rows = tuple(
        row | {"setting": name, "right": right, "accuracy": right / 10, "score": right / 10}
        for name, right in (("dearer", right), ("cheap", 8), ("bad", 3), ("full", 9))
        for row in one.rows[:1]
    )
    several = dataclasses.replace(one, config=one.config | {"settings": settings}, rows=rows)
    (run,) = show(tmp_path, several)["runs"]
    assert run["outcome"] == f"full attention: 9 of 10 right; {outcome}"


def test_a_demo_tells_how_many_settings_answered_the_most(tmp_path):
    one = runs.demo()
    equal = dataclasses.replace(one, rows=tuple(row | {"answered": 8} for row in one.rows))
    for at, (run, said) in enumerate(
        ((one, "full, prefill 1.00x"), (equal, "2 settings, fastest: fast, prefill 4.00x"))
    ):
        (shown,) = show(tmp_path / str(at), run)["runs"]
        assert shown["outcome"] == f"highest of 2 settings here: 8 of 8 ({said})"


def test_a_demo_is_points_times_and_bytes(shown):
    (fast,) = [one for one in shown["answers"] if one["time"].startswith("prefill of 2,000")][1:]
    assert (fast["accuracy"], fast["kv_bytes"], fast["seconds"]) == (0.75, 10 << 20, 2.0)
    assert 0.4 < fast["low"] < 0.75 < fast["high"] < 1
    (kv,) = _of(shown["measurements"], measure="KV after the prompt", series="fast", tokens=2000)
    assert (kv["chart"], kv["unit"], kv["value"]) == ("memory", "B", 10 << 20)


def test_kernels_are_times_with_percentiles(shown):
    items = _of(shown["measurements"], measure="prefill, attention of one layer")
    assert len(items) == 6  # what was refused has no time
    (ours,) = _of(items, ours=True, tokens=4096)
    assert (ours["value"], ours["low"], ours["high"]) == pytest.approx(
        (4.096e-3, 3.6864e-3, 4.9152e-3)
    )
    assert {one["series"] for one in items if one["full"]} == {"SDPA (full)", "FA4 (full)"}
    assert ours["note"] == "80 % of the matrix product rate of this run"


def test_generation_is_times_rates_limits_and_bytes(shown):
    items = [one for one in shown["measurements"] if one["group"].startswith("qwen3-4b, ")]
    (first,) = _of(items, measure="time to first token", series="fast", tokens=16384)
    assert (first["value"], first["low"], first["high"]) == pytest.approx((2.0, 1.8, 2.2))
    assert first["note"] == "Amdahl's limit 3.33x, 90 % of it reached"
    (stock,) = _of(items, measure="time to first token", tokens=16384, full=True)
    assert stock["series"] == "stock: FA4 (decoding: SDPA)"
    (limit,) = _of(items, measure="share of Amdahl's limit reached, first token", tokens=8192)
    assert (limit["value"], limit["unit"]) == (0.9, "share")
    kv = _of(items, measure="KV after the prompt")
    assert {one["series"] for one in kv} == {"fast", stock["series"]}
    assert not [one for one in items if one["tokens"] == 32768]  # refused
    (run,) = _of(shown["runs"], kind="generate")
    assert run["outcome"] == "at 16,384, first token vs stock: fast 3.00x"


def test_of_one_timing_there_is_no_spread(tmp_path):
    one = runs.generate()
    rows = tuple(
        {**row, "first_token_s": row["first_token_s"] | {"timings": 1}}
        if "first_token_s" in row
        else row
        for row in one.rows
    )
    items = show(tmp_path, dataclasses.replace(one, rows=rows))["measurements"]
    first = _of(items, measure="time to first token", tokens=16384)
    assert len(first) == 3
    assert {(item["low"], item["high"]) for item in first} == {(None, None)}
    assert {item["series"].partition(":")[0]: item["note"] for item in first} == {
        "no attention at all": "one timing",
        "stock": "one timing",
        "fast": "one timing; Amdahl's limit 3.33x, 90 % of it reached",
    }
    assert all(item["low"] for item in _of(items, measure="time per output token"))


def test_served_recipes_are_times_and_throughput(shown):
    items = [one for one in shown["measurements"] if one["measure"].endswith("served")]
    assert {one["measure"].partition(",")[0]: one["value"] for one in items} == {
        "time to first token": 1.0,
        "time per output token": 1.0,
        "throughput": 12_345.6,
    }
    assert [one["more_is_better"] for one in items] == [False, False, True]
    assert "11 requests of 128 new tokens, all at once, 2 under way" in items[0]["group"]


def test_without_the_library_one_line_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    page._charting_library.cache_clear()
    (tmp_path / "results").mkdir()
    assert main(["report", str(tmp_path / "results"), "-o", str(tmp_path / "r.html")]) == 2
    said = "swaa report: the page's charts need vl-convert-python; run: pip install '.[report]'"
    assert capsys.readouterr().err.startswith(said)
    assert not (tmp_path / "r.html").exists()


def test_a_training_is_bars_of_right_answers(shown):
    bars = {(one["task"], one["state"]): one for one in shown["trainings"]}
    assert {place: one["right"] for place, one in bars.items()} == {
        ("needle", "full attention, untrained"): 40,
        ("needle", "recipe, untrained"): 9,
        ("needle", "recipe, trained by kl"): 30,
        ("multikey", "full attention, untrained"): 26,
        ("multikey", "recipe, untrained"): 14,
        ("multikey", "recipe, trained by kl"): 20,
    }
    one = bars["multikey", "recipe, trained by kl"]
    assert one["samples"] == 40
    assert one["low"] < 20 / 40 < one["high"]
    assert one["recipe"] == "window 64, 4 sinks, full decode, dense tail 8"


def test_a_training_lists_what_each_state_answered(shown):
    (run,) = [one for one in shown["runs"] if one["kind"] == "train"]
    assert run["outcome"] == (
        "needle: full 40 / before 9 / kl 30 of 40; multikey: full 26 / before 14 / kl 20 of 40"
    )
    assert run["task"] == "needle, multikey"


def test_several_trainings_in_one_result_name_what_each_minimised(tmp_path):
    one = runs.train()
    trainings = {state: {"settings": {"objective": state}} for state in ("sft", "kl")}
    config = {"swaa": one.config["swaa"], "trainings": trainings}
    (run,) = show(tmp_path, dataclasses.replace(one, config=config))["runs"]
    assert run["setting"] == "trained by sft, kl"


def test_tuned_recipes_are_priced_by_arithmetic(shown):
    (found,) = _of(shown["answers"], setting="found")
    assert (found["kv_share"], found["flops_share"], found["seconds"]) == (0.25, 0.2, None)
    assert found["count"] == "44 of 50"


def test_a_tuning_names_the_task_of_its_outcome(tmp_path):
    one = runs.tune()
    easy = [
        row | {"task": "needle", "right": right, "low": 0.8, "high": 1.0}
        for row, right in zip(one.rows, (50, 49), strict=True)
    ]
    # Right more often in the easy task, less often over both.
    other = [
        row | {"recipe": "other", "right": right}
        for row, right in ((one.rows[1], 40), (easy[1], 50))
    ]
    (run,) = show(tmp_path, dataclasses.replace(one, rows=(*one.rows, *easy, *other)))["runs"]
    said = "found (highest of 2 recipes here) 44 of 50 right"
    assert run["outcome"] == f"multikey: full attention 45, {said}"


def test_a_tuning_tells_how_many_recipes_are_equal(tmp_path):
    one = runs.tune()
    dearer = one.rows[1] | {"recipe": "dearer", "kv_bytes": 0.5}
    rows = (one.rows[0], dearer, one.rows[1])
    (run,) = show(tmp_path, dataclasses.replace(one, rows=rows))["runs"]
    said = "found (highest of 2 recipes here, 2 equal, least KV) 44 of 50 right"
    assert run["outcome"] == f"multikey: full attention 45, {said}"


def test_vllm_engines_are_times_and_bytes(shown):
    items = [one for one in shown["measurements"] if "vLLM" in one["measure"]]
    ours, traffic = _of(items, chart="speed", series="full decode")
    assert ours["measure"] == "time to first token in vLLM, best of 2"
    assert (traffic["value"], traffic["unit"], traffic["more_is_better"]) == (300.0, "tok/s", True)
    assert "4 requests at once of 128,000 + 512 tokens" in traffic["measure"]
    assert (ours["value"], ours["tokens"], ours["ours"], ours["full"]) == (
        3.0,
        131_072,
        True,
        False,
    )
    assert len(_of(items, unit="B")) == 2
    assert [one["value"] for one in _of(items, unit="tok/GiB")] == [7000.0, 21_000.0]
    (run,) = _of(shown["runs"], kind="vllm")
    assert run["outcome"] == "first token: stock 9.00 s, full decode 3.00 s (3.00x)"


def test_vllm_engines_without_a_pair_to_compare_say_what_there_is(tmp_path):
    one = runs.vllm()
    for at, (rows, said) in enumerate(
        (
            (one.rows[1:], "first token: full decode 3.00 s"),
            ((), "neither stock nor ours was timed"),
        )
    ):
        (run,) = show(tmp_path / str(at), dataclasses.replace(one, rows=rows))["runs"]
        assert run["outcome"] == said


def test_the_papers_numbers_are_those_of_its_tables():
    paper = read_paper()
    group = "paper: Qwen3-4B-Thinking-2507, LongMemEval, 24k tokens"
    points = {one.setting: one for one in paper.answers if one.group == group}
    full = points["full attention"]
    assert full.accuracy == 0.73
    # Its Figure 2 has 3.44 there: thousand seconds for a hundred requests.
    assert full.seconds == pytest.approx(34.4, abs=0.05)
    naive = points["window 2000, 0 sinks"]
    assert naive.accuracy == 0.032
    assert full.seconds / naive.seconds == pytest.approx(30.72 / 3.74)
    both = points["window 2000, 100 sinks, full layers odd, full decode, trained"]
    assert (both.accuracy, both.trained) == (0.732, True)
    assert full.seconds / both.seconds == pytest.approx(4.72 / 3.74)
    assert not [one for one in paper.answers if "window 8000" in one.setting]  # never timed
    assert all(one.low is None for one in paper.answers)
    assert sum(one.full for one in paper.answers) == 6


def test_the_page_is_the_same_for_the_same_files(tmp_path):
    runs.write(runs.all_runs(), tmp_path / "results")
    pages = [
        write_report(tmp_path / "results", tmp_path / name).path for name in ("a.html", "b.html")
    ]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_the_page_is_one_file_and_closed(tmp_path):
    runs.write(runs.all_runs(), tmp_path / "results")
    page = write_report(tmp_path / "results", tmp_path / "a.html").path.read_text("utf-8")
    assert "default-src 'none'" in page
    library = re.search(r'<script type="module">.*?</script>', page, re.DOTALL)[0]
    assert "vegaEmbed" in library
    page = page.replace(library, "")  # that it loads nothing, a browser without a network checks
    assert not re.search(r"\bsrc=\"|@import|url\(|<link[^>]+href=\"(?!data:)", page)
    assert runs.EVIL not in page  # a value cannot end the script it lies in
    assert page.count("</script>") == 2
    assert "<!--" not in page


def test_links_are_relative_to_the_page(tmp_path):
    (path,) = runs.write([runs.kernels()], tmp_path / "all results")
    page = write_report(tmp_path / "all results", tmp_path / "deep/er/page.html").path
    (run,) = content(page.read_text("utf-8"))["runs"]
    assert run["files"] == {"result": f"../../all%20results/{path}"}


def _broken(folder):
    """One file for each thing that may be wrong; the reasons, by file name."""
    good = json.loads(save(runs.kernels(), folder=folder).read_text("utf-8"))
    (folder / "kernels/not-json.json").write_text("{", "utf-8")
    (folder / "kernels/binary.json").write_bytes(b"\xff\xfe\x00")
    (folder / "kernels/list.json").write_text("[]", "utf-8")
    (folder / "kernels/deep.json").write_text("[" * 100_000, "utf-8")
    (folder / "kernels/newer.json").write_text(json.dumps(good | {"schema": 9}), "utf-8")
    (folder / "kernels/renamed.json").write_text(json.dumps(good), "utf-8")
    (folder / "eval").mkdir()
    (folder / "eval/lost.jsonl").write_text("{}\n", "utf-8")
    (folder / "eval/a-task-scores-0123abcd.jsonl").write_text("{}\n", "utf-8")  # no run
    (folder / "eval/done-0123abcd.judge.jsonl").write_text("{}\n", "utf-8")  # no run
    odd = {"config": {"x": 1}, "provenance": runs.provenance()}
    save(runs.Result(kind="hats", name="h", rows=({"size": 3},), **odd), folder=folder)
    save(runs.Result(kind="demo", name="d", rows=({"size": 3},), **odd), folder=folder)
    save(runs.Result(kind="serve", name="s", rows=(), **odd), folder=folder)
    save(runs.Result(kind="tune", name="t", rows=(3,), **odd), folder=folder)
    return {
        "binary": "is not JSON",
        "deep": "nested too deeply",
        "list": "is not a result file; expected the keys schema,",
        "newer": "has schema 9; this swaa reads 1: upgrade swaa",
        "not-json": "is not JSON: Expecting property name",
        "renamed": "was renamed or edited: its content belongs in k-",
        "lost": "samples without a result: the run was interrupted",
        "h": "kind 'hats' has no figure in this swaa; its rows are in the table",
        "d": "cannot be drawn as 'demo': ",
        "s": "cannot be drawn as 'serve': ",
        "t": "has rows that are not JSON objects",
    }


def test_what_cannot_be_read_is_one_line_each(tmp_path, capsys):
    reasons = _broken(tmp_path / "results")
    words = ["report", str(tmp_path / "results"), "-o", str(tmp_path / "page.html")]
    assert main(words) == 0
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == len(reasons)
    for name, reason in reasons.items():
        (line,) = [line for line in lines if re.search(rf"/{name}(-\w{{8}})?\.json", line)]
        assert line.startswith("swaa report: ")
        assert reason in line
        assert str(tmp_path) not in line
    shown = content((tmp_path / "page.html").read_text("utf-8"))
    assert len(shown["problems"]) == len(reasons)
    # Three that can be read are in the table, beside the good one.
    assert sorted(run["kind"] for run in shown["runs"]) == ["demo", "hats", "kernels", "serve"]
    assert said.out == f"4 runs, 11 problems; written: {tmp_path}/page.html\n"
    assert main([*words, "--strict"]) == 2


def test_no_folder_and_an_empty_one(tmp_path, refusal):
    assert refusal("report", str(tmp_path / "none")).startswith(
        f"swaa report: no folder {tmp_path}/none; name the one that"
    )
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    assert content((tmp_path / "page.html").read_text("utf-8"))["runs"] == []


def test_the_committed_results_are_all_drawn(tmp_path):
    # A copy: whoever measures meanwhile changes the original.
    folder = shutil.copytree(ROOT / "results", tmp_path / "results")
    report = write_report(folder, tmp_path / "page.html")
    assert report.problems == ()
    assert report.runs == len(list(folder.rglob("*.json"))) > 0


def test_what_is_no_report_is_not_replaced(tmp_path, refusal):
    (tmp_path / "results").mkdir()
    notes = tmp_path / "notes.html"
    notes.write_text("<title>my notes</title>")
    for output in (notes, tmp_path):
        assert "is not a report, so it is not replaced" in refusal(
            "report", str(tmp_path / "results"), "-o", str(output)
        )
    assert notes.read_text() == "<title>my notes</title>"
    for _ in range(2):  # a report may be replaced
        assert main(["report", str(tmp_path / "results"), "-o", str(tmp_path / "r.html")]) == 0
