import re
from pathlib import Path

import pytest
import torch

from swaa.attention import swaa_attention
from swaa.testing import keys_seen

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_mask_shown_is_the_mask():
    shown = [
        [int(sign) for sign in row.split()] for row in re.findall(r"((?:[01] ){9}[01])", README)
    ]

    def attention(q, k, v):
        return swaa_attention(q, k, v, window=4, sink_tokens=1, full_from=7, backend="reference")

    seen = keys_seen(attention, batch=1, queries=10, keys=10)
    assert torch.equal(seen.reshape(10, 10).int(), torch.tensor(shown, dtype=torch.int32))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_and_named_files_exist(page):
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text("utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tree_names_what_is_there():
    tree = README.split("## What lies where")[1]
    names = re.findall(r"^      ([\w., /]+?)  ", tree, flags=re.MULTILINE)
    files = [name.strip() for entry in names for name in entry.split(",")]
    assert len(files) > 10
    assert [name for name in files if not (ROOT / "src/swaa" / name).exists()] == []
