"""Methods of ours that stand in for those of a serving engine."""

import inspect


def overrides(kind, package):
    """Each method of ours next to the one of the package's classes that it replaces.

    Args:
        kind: a class that derives from classes of the package.
        package: such as ``vllm``.
    """
    for name, ours in inspect.getmembers(kind, inspect.isroutine):
        if not (getattr(ours, "__module__", None) or "").startswith("swaa."):
            continue
        for base in kind.__mro__:
            theirs = base.__dict__.get(name)
            if base.__module__.startswith(f"{package}.") and theirs is not None:
                yield name, ours, getattr(theirs, "__func__", theirs)
                break
