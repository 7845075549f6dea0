"""Stands in for torchvision, which models that see pictures import: PyPI's builds need CUDA."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "sglang" / "stand_ins"))
from absent import named, submodules_of

__version__ = "0.28.0"
__path__: list[str] = []
submodules_of("torchvision")


def __getattr__(name):
    return named("torchvision", name)
