"""Stands in for torchvision, which a text model on the CPU imports and never calls."""

from absent import named, submodules_of

__version__ = "0.28.0"
__path__: list[str] = []
submodules_of("torchvision")


def __getattr__(name):
    return named("torchvision", name)
