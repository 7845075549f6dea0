"""The page of benchmarks: made from result files, and up to date."""

from swaa import SWAAConfig, results
from swaa.benchmark.generate.options import NOTHING, STOCK
from swaa.benchmark.page import make_page, write_page
from tests.documents import ROOT

TOKENS = 131_072
SLIDING = SWAAConfig(window=2048, sink_tokens=128)
QUARTER = SWAAConfig(window=2048, full_layers="middle:1/4", full_decode=True)
HALF = SWAAConfig(window=2048, full_layers="odd")


def row(setting, tokens, first, **values):
    base = {
        "kind": "t0" if setting == NOTHING else "run",
        "setting": setting,
        "tokens": tokens,
        "batch": 1,
        "refused": None,
        "first_token_s": {"p20": first, "p50": first, "p80": first, "timings": 1},
        "per_token_s": {"p20": 0.004, "p50": 0.004, "p80": 0.004, "timings": 127},
        "prefill_tokens_per_s": tokens / first,
        "decode_tokens_per_s": 250.0,
        "kv_bytes": 1000,
        "kv_allocated_bytes": 1010,
        "kv_predicted_bytes": 1000,
        "kv_peak_bytes": 2100,
        "kv_predicted_peak_bytes": 2000,
        "peak_bytes": 5000,
        "matmul_s": 0.5,
        "weights_s": 0.001,
    }
    if setting != NOTHING:
        base |= {"first_token_speedup": 4.5, "first_token_limit": 5.0, "first_token_of_limit": 0.9}
        base |= {"per_token_speedup": 1.4, "per_token_limit": 2.0, "per_token_of_limit": 0.7}
    return base | values


def made(rows, recipes=None, model="qwen3-4b", fa4=0.01):
    recipes = {"sliding": SLIDING, "quarter": QUARTER, "half": HALF} if recipes is None else recipes
    return results.Result(
        kind="generate",
        name=model,
        config={
            "model": model,
            "recipes": {name: config.to_dict() for name, config in recipes.items()},
        },
        rows=(
            {"kind": "ceiling", "matmul": 7e14, "copy": 4e12},
            {
                "kind": "stock",
                "prefill": {"best": "FA4", "tried": {"FA4": fa4, "FA3": "not | here"}},
                "decode": {"best": "SDPA", "tried": {"SDPA": 0.001}},
            },
            *rows,
        ),
        provenance=results.record_provenance(model=model, model_revision="random weights"),
    )


ROWS = [
    row(NOTHING, TOKENS, 1.0),
    row(STOCK, TOKENS, 9.0),
    row("sliding", TOKENS // 2, 1.0),
    row("sliding", TOKENS, 2.2),
    row("quarter", TOKENS, 3.0, first_token_speedup=2.1, first_token_of_limit=0.84),
    row("half", TOKENS, 5.0),
]


def test_the_page_shows_every_file(tmp_path):
    path = results.save(made(ROWS), folder=tmp_path)
    page = make_page(tmp_path)
    assert f"[{path.name}](../../results/generate/{path.name})" in page
    assert "| prefill | FA3 | not timed: not \\| here |  |" in page
    assert "| prefill | FA4 | 10.000 | taken |" in page
    assert "| 131,072 | 1 | sliding | 2.200 | - | 1 | 4.50x | 5.00x | 90% | 59,578 |" in page
    assert "| 131,072 | 1 | sliding | 4.00 | 4.00 to 4.00 | 127 | 1.40x |" in page
    assert "## Attention kernels" not in page
    write_page(tmp_path, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text("utf-8") == page


def test_the_fullest_file_comes_first_and_a_missing_rival_is_named(tmp_path):
    results.save(made(ROWS[:2], model="a-small-run", fa4="not here"), folder=tmp_path)
    results.save(made(ROWS), folder=tmp_path)
    full, small = make_page(tmp_path).split("### a-small-run")
    assert "### qwen3-4b" in full
    assert "without FA4" not in full
    assert "(ms); without FA4, often the fastest, stock is slower than it could be**" in small


def test_the_committed_page_is_made_from_the_committed_results():
    """Where this fails: ``python -m swaa.benchmark.page``."""
    page = make_page(ROOT / "results")
    assert (ROOT / "docs/measurements/benchmarks.md").read_text("utf-8") == page
    for kind in ("kernels", "generate"):
        for path in (ROOT / "results" / kind).glob("*.json"):
            assert path.name in page


def test_kernels_that_were_not_timed_say_why():
    page = make_page(ROOT / "results")
    assert "not measured: BackendError: backend 'fa4': splits no keys on Hopper" in page
    assert "| swaa triton | window 2048 + 128 sinks |" in page
