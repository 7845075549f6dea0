"""Times that the pages on serving engines tell are those of the result files."""

import pytest

from swaa import results
from tests.documents import ROOT

FILES = {
    "sglang": "sglang/qwen3-4b-shape-c4e3eb13.json",
    "vllm": "vllm/qwen3-4b-shape-9f0b2f0d.json",
}
ROWS = {
    "sglang": {
        "ours, full decode in all layers": "full_decode",
        "ours, sliding decode": "sliding",
    },
    "vllm": {
        "ours, full decode in all layers, every prompt row slides": "full_decode",
        "ours, `selected`": "selected",
        "ours, `selected` with `decode_keys` 4,096": "selected_decode_keys",
    },
}


@pytest.mark.parametrize("engine", list(FILES))
def test_the_tables_are_those_of_the_results(engine):
    page = (ROOT / f"docs/measurements/{engine}.md").read_text("utf-8")
    assert f"results/{FILES[engine]}" in page
    rows = {row["engine"]: row for row in results.load(ROOT / "results" / FILES[engine]).rows}
    for told, setting in (ROWS[engine] | {"stock, full attention": "stock"}).items():
        row = rows[setting]
        first, each = row["first_token_seconds"], 1e3 * row["each_token_seconds"]
        shown = [told, f"{first:.2f} s", f"{each:.2f} ms"]
        if row["live_kv_bytes"] is not None:
            shown.append(f"{row['live_kv_bytes'] / 2**30:.2f} GiB")
        shown.append(f"{row['kv_tokens_per_gib']:,.0f} tokens")
        assert f"| {' | '.join(shown)} |" in page
