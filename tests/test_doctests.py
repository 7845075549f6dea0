import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["config", "layers", "plan", "cli.table"])
def test_examples_in_docstrings_hold(name):
    results = doctest.testmod(importlib.import_module(f"swaa.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
