"""Packages whose wheels need CUDA: every name imports, and raises when it is called."""

import importlib.abc
import importlib.machinery
import sys
import types


class Absent:
    """A name of a package that is not there."""

    def __init__(self, name):
        self.__name__ = self.__qualname__ = name

    def __call__(self, *_args, **_kwargs):
        raise NotImplementedError(f"{self.__name__} needs a wheel that needs CUDA")

    def __getattr__(self, name):
        return named(self.__name__, name)

    def __mro_entries__(self, _bases):
        return (object,)

    def __or__(self, other):
        return self

    __ror__ = __or__


def named(package, name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Absent(f"{package}.{name}")


class _Module(types.ModuleType):
    def __getattr__(self, name):
        return named(self.__name__, name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, package):
        self.package = package

    def find_spec(self, fullname, path, target=None):
        if fullname.startswith(f"{self.package}."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = _Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


def submodules_of(package):
    """Let every submodule of a package import, too."""
    sys.meta_path.append(_Finder(package))
