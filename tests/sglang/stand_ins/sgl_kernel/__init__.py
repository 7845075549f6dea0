"""Stands in for sgl_kernel, which a text model on the CPU imports and never calls."""

from absent import named, submodules_of

__version__ = "0.4.10"
__path__: list[str] = []
submodules_of("sgl_kernel")


def __getattr__(name):
    return named("sgl_kernel", name)
