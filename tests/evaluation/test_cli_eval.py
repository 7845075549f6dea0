import argparse
import dataclasses
import json

import pytest

from swaa import cli, load_recipe
from swaa.cli.endpoints import refuse_unused
from swaa.config import SWAAConfig
from swaa.evaluation.prompt import Prompt
from swaa.plan import price
from tests.evaluation.server import serve


def test_what_slides_nowhere_is_said_and_keeps_nothing_of_full_attention(tiny, prints):
    words = ["eval", "tiny", *_LIGHT, "--recipes", "full,naive", "--sink-tokens", "64"]
    out = prints(*words, "--window", "800", "--dense-tail", "8")
    label = "naive window=800 sink_tokens=64 dense_tail=8"
    assert f"{label}: nothing slides: window 800 and 64 sinks cover every prompt of needl" in out
    rows = json.loads(prints(*words, "--window", "800", "--dense-tail", "8", "--json"))
    assert [row["recipe"] for row in rows] == ["full", "naive"]
    assert [(row["retention"], row["p"]) for row in rows] == [(None, None)] * 2


_LIGHT = ["--tasks", "needle", "--lengths", "600", "--samples", "1"]


def _run(*words):
    common = ["--tasks", "needle,recall", "--lengths", "600", "--samples", "2", "--window", "128"]
    return cli.main(["eval", "tiny", *common, *words])


def test_recipes_are_measured_on_the_same_samples_and_kept(tiny, capsys, tmp_path):
    words = ("--recipes", "full,naive,fast", "--batch-size", "2")
    assert _run(*words) == 0
    out = capsys.readouterr().out
    assert sum(line.startswith("needle ") for line in out.splitlines()) == 6
    assert "naive window=128: window 128, 0 sinks\n" in out
    assert "nothing slides" not in out
    assert "in the sinks" in out
    files = sorted((tmp_path / "results" / "eval").iterdir())
    assert len(files) == 12
    times = [path.stat().st_mtime_ns for path in files]
    assert _run(*words, "--json") == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert [(row["task"], row["recipe"]) for row in rows] == [
        (task, recipe) for task in ("needle", "recall") for recipe in ("full", "naive", "fast")
    ]
    assert [path.stat().st_mtime_ns for path in files] == times
    for row in rows:
        config = load_recipe(row["recipe"])
        if config.window is not None:
            config = dataclasses.replace(config, window=128)
        ratios = price(tiny.model.config, config, prompt_length=600).ratios()
        kept = row["rows"][0]
        assert kept["flops_share"] == ratios["prefill_flops"]
        assert kept["keys_share"] == ratios["prefill_attention_flops"]
        assert kept["kv_share"] == ratios["kv_steady_bytes"]
    naive = next(line for line in out.splitlines() if " naive " in line)
    assert f" {100 * rows[1]['rows'][0]['flops_share']:.0f} " in naive
    prompts = [
        {json.loads(line)["prompt"] for line in path.read_text().splitlines()}
        for path in files
        if path.suffix == ".jsonl" and "needle" in path.name
    ]
    assert prompts[0] == prompts[1] == prompts[2]


def test_gathered_runs_are_done(tiny, capsys, tmp_path):
    words = ("--recipes", "full,naive,fast", "--gather")
    assert _run(*words) == 0
    table = capsys.readouterr().out
    files = sorted((tmp_path / "results" / "eval").iterdir())
    assert [path.suffix for path in files] == [".json", ".jsonl"] * 2
    times = [path.stat().st_mtime_ns for path in files]
    assert _run(*words) == 0
    assert capsys.readouterr().out == table
    assert _run(*words[:2]) == 0
    assert capsys.readouterr().out == table
    assert sorted((tmp_path / "results" / "eval").iterdir()) == files
    assert [path.stat().st_mtime_ns for path in files] == times


def test_other_knobs_are_gathered_in_a_file_of_their_own(tiny, tmp_path):
    words = ["eval", "tiny", *_LIGHT, "--recipes", "full,naive", "--gather", "--window"]
    for window, files in (("128", 1), ("200", 2), ("128", 2)):
        assert cli.main([*words, window]) == 0
        found = sorted((tmp_path / "results" / "eval").glob("*.json"))
        assert len(found) == files
    kept = [json.loads(path.read_text())["config"]["settings"] for path in found]
    assert {one["naive"]["window"] for one in kept} == {128, 200}


def test_settings_that_could_not_be_gathered_are_refused_first(tiny, capsys, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        load_recipe("fast").save(tmp_path / folder / "x.json")
    assert _run("--recipes", "a/x.json,b/x.json", "--gather") == 2
    assert "two settings are called 'x'" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("knob", ["--sink-tokens", "--dense-tail"])
def test_a_knob_that_turns_nothing_is_refused(tiny, refusal, knob):
    assert f"{knob} would do nothing: every recipe given is full" in refusal(
        "eval", "tiny", *_LIGHT, "--recipes", "full", knob, "4"
    )


def test_prompts_are_encoded_once_for_all_settings(tiny, monkeypatch, tmp_path):
    calls = []
    encode = Prompt.encode
    monkeypatch.setattr(Prompt, "encode", lambda *args: calls.append(1) or encode(*args))
    counts = []
    for recipes in ("full", "full,naive,fast"):
        calls.clear()
        words = ["--recipes", recipes, "--results", str(tmp_path / recipes)]
        assert cli.main(["eval", "tiny", *words, *_LIGHT]) == 0
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_a_served_model_is_asked(tiny, capsys):
    with serve("It is 7.") as server:
        words = ("--recipes", "fast", "--endpoint", server.url, "--served-model", "m", "--json")
        assert _run(*words) == 0
        assert len(server.requests) == 4
        assert all(isinstance(body["prompt"][0], int) for body in server.requests)
        assert {len(body["prompt"]) for body in server.requests} == {600}
    assert json.loads(capsys.readouterr().out)[0]["provenance"]["model"] == "m"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipes", "ful"], "unknown recipe 'ful'; did you mean 'full'?"),
        (["--recipes", "full"], "--window would do nothing: every recipe given is full"),
        (["--recipes", "fast, fast"], "--recipes fast, fast names fast twice"),
        (["--recipes", "fast,"], "--recipes 'fast,': expected names or numbers"),
        (["--tasks", "recall,recall"], "--tasks recall,recall names recall twice"),
        (["--lengths", "600,600"], "--lengths 600,600 names 600 twice"),
        (["--judge-endpoint", "http://x/v1", "--judge-model", "m"], "a judge would do nothing:"),
        (["--key-variable", "K"], "--key-variable does nothing without --endpoint"),
        (["--timeout", "5"], "--timeout does nothing without --endpoint"),
        (["--recipes", "fast", "--recipe", "fast"], "--recipe and --recipes exclude each other"),
        (["--lengths", "4q"], "--lengths 4q: expected whole numbers of at least 1"),
        (["--samples", "0"], "--samples 0: expected a whole number of at least 1"),
        (["--tasks", "nedle"], "unknown task 'nedle'; did you mean 'needle'?"),
        (
            ["--lengths", "2048"],
            "sample needle-2048-0-0 has 2048 tokens and an answer of up to 24;",
        ),
        (["--endpoint", "http://127.0.0.1:9/v1"], "a server runs one recipe; name it alone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_code_2(tiny, capsys, words, message):
    assert _run(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"swaa eval: {message}")
    assert err.count("\n") == 1


def test_a_judge_heeds_the_flags_of_servers():
    flags = {"served_model": None, "api": "completions", "key_variable": "OPENAI_API_KEY"}
    given = argparse.Namespace(endpoint=None, concurrency=2, timeout=5.0, **flags)
    given.key_over_http = False
    given.judge_endpoint = "http://127.0.0.1:9/v1"
    refuse_unused(given, local={})
    given.judge_endpoint = None
    with pytest.raises(ValueError, match="--concurrency does nothing without --endpoint"):
        refuse_unused(given, local={})


def test_help_names_every_default(prints):
    assert "default: needle,multikey" in prints("eval", "--help")


def test_settings_of_one_file_name_are_told_apart(tiny, prints, tmp_path):
    for folder, window in (("a", 100), ("b", 200)):
        (tmp_path / folder).mkdir()
        SWAAConfig(window=window).save(tmp_path / folder / "x.json")
    for _ in range(2):
        rows = json.loads(
            prints("eval", "tiny", *_LIGHT, "--json", "--recipes", "a/x.json,b/x.json")
        )
        assert [row["recipe"] for row in rows] == ["a/x.json", "b/x.json"]
        assert rows[0]["file"] != rows[1]["file"]


@pytest.mark.parametrize(
    "words",
    [
        ("--backend", "sdpa", "--endpoint", "http://127.0.0.1:1/v1", "--recipes", "fast"),
        ("--batch-size", "4", "--endpoint", "http://127.0.0.1:1/v1", "--recipes", "fast"),
        ("--device-map", "auto", "--endpoint", "http://127.0.0.1:1/v1", "--recipes", "fast"),
        ("--concurrency", "2"),
        ("--served-model", "m"),
    ],
    ids=lambda words: words[0],
)
def test_a_flag_that_would_do_nothing_is_refused(tiny, capsys, words):
    assert _run(*words) == 2
    assert f"{words[0]} does nothing with" in capsys.readouterr().err
