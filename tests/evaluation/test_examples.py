import doctest
import importlib
import pkgutil

import pytest

import swaa.evaluation

# The harness and RULER's script need packages of their own.
WITHOUT = ("harness", "ruler_script")
NAMES = sorted(
    module.name
    for module in pkgutil.walk_packages(swaa.evaluation.__path__, "swaa.evaluation.")
    if not module.name.endswith(WITHOUT)
)


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    found = doctest.DocTestFinder().find(importlib.import_module("swaa.statistics"))
    assert sum(len(test.examples) for test in found) >= 3
