import doctest
import importlib
import re

import pytest

from tests.documents import ROOT

SOURCE = ROOT / "src"
# RULER's script and SGLang's pool need packages of their own.
WITHOUT = ("ruler_script", "pool")
NAMES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(SOURCE.rglob("*.py"))
    if path.stem not in WITHOUT and re.search(r">>> (?!.*SKIP)", path.read_text("utf-8"))
]


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_docstrings_hold(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


def test_there_are_examples():
    assert {"swaa.config", "swaa.layers", "swaa.plan", "swaa.statistics"} < set(NAMES)
