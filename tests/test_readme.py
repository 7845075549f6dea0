"""The README: its code runs, its numbers are those of the results, and it stays short."""

import re

import pytest
import torch

from swaa.attention import swaa_attention
from swaa.benchmark import overview
from swaa.testing import keys_seen
from tests.documents import ROOT, fences, read

README = read("README.md")
RESULTS = ROOT / "results"


def test_the_mask_shown_is_the_mask():
    concepts = read("docs/concepts/rows-and-phases.md")
    shown = [
        [int(sign) for sign in row.split()] for row in re.findall(r"((?:[01] ){9}[01])", concepts)
    ]

    def attention(q, k, v):
        return swaa_attention(q, k, v, window=4, sink_tokens=1, full_from=7, backend="reference")

    seen = keys_seen(attention, batch=1, queries=10, keys=10)
    assert torch.equal(seen.reshape(10, 10).int(), torch.tensor(shown, dtype=torch.int32))


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) < 150
    assert len(re.findall(r"^\| ---", README, flags=re.MULTILINE)) == 2


def test_the_tables_are_those_of_the_results():
    """Where this fails: ``python -m swaa.benchmark.overview``."""
    assert overview.fill(README, RESULTS) == README
    assert overview.answers_table(RESULTS) in README
    assert overview.times_table(RESULTS) in README


def test_the_picture_shows_the_results():
    mark = overview.fingerprint(RESULTS)
    assert mark.encode() in (ROOT / "docs/overview.png").read_bytes()


def test_the_picture_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'swaa[plot]'")
    document = tmp_path / "page.md"
    document.write_text("<!-- answers -->\n<!-- end -->\nkept\n<!-- times -->\n<!-- end -->\n")
    overview.main(str(RESULTS), str(document), str(tmp_path / "picture.png"))
    assert overview.answers_table(RESULTS) in document.read_text()
    assert "kept" in document.read_text()
    assert overview.fingerprint(RESULTS).encode() in (tmp_path / "picture.png").read_bytes()


def test_what_the_text_says_is_in_the_results():
    answers, times = overview.read_answers(RESULTS), overview.read_times(RESULTS)
    chains = {name: row["right"] for name, row in answers["variable_tracking", 16_384].items()}
    words = " ".join(README.split())
    told = f"It follows {chains['fast']} of the {chains['full']} chains of assignments"
    assert told in words
    assert f"and `balanced` follows {chains['balanced']}" in words
    early = {length: row["first_token_speedup"] for length, row in times["fast"].items()}
    assert f"8,192 tokens {early[8192]:.2f} times as early" in words
    assert f"of 32,768 tokens {early[32_768]:.2f} times" in words
    timed = overview.results.load(RESULTS / overview.OWN).rows
    (nothing,) = [row for row in timed if row["kind"] == "t0" and row["tokens"] == 30_000]
    stock = overview.read_own_times(RESULTS)["full"]
    spent, whole = (f"{row['first_token_s']['p50']:.3f} s" for row in (nothing, stock))
    assert f"{spent} of full attention's {whole} are not attention" in words
    other = overview.results.load(RESULTS / overview.TIMED[1]).rows
    stock = next(row for row in other if row["kind"] == "run" and row["setting"] == "stock")
    assert f"full attention took {stock['first_token_s']['p50']:.2f} s" in words
    counts = {(length, rows["full"]["samples"]) for (_, length), rows in answers.items()}
    assert counts == {(16_384, 100), (30_000, 50)}
    served = overview.results.load(RESULTS / "vllm/qwen3-4b-shape-9f0b2f0d.json").rows
    first = {row["engine"]: f"{row['first_token_seconds']:.3g} s" for row in served}
    assert (
        f"after {first['selected']} under `selected`, {first['full_decode']} where every" in words
    )
    assert f"layer slides, {first['stock']} with full attention" in words


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2_at_hand")
def test_the_python_runs_as_it_stands(capsys):
    (code,) = [block for language, block in fences("README.md") if language == "python"]
    assert len(code.splitlines()) < 16
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("adapted 30 of 30 layers: window 256, 64 sinks, full decode, dense tail")
    assert "4711" in said.splitlines()[-1]
