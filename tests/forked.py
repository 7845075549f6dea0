"""Processes of serving engines, forked from a server that has imported what each imports first.

Engines spawn theirs: for each scheduler and worker a process begins from nothing and spends a
quarter of a minute on imports. Plugins, hooks and models are loaded after the fork, as they are
after a spawn.
"""

import multiprocessing
import os


class Forking:
    """Stands in for the module ``multiprocessing``, or for a context, of an engine."""

    def __init__(self, *imported_first):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(imported_first))

    def __getattr__(self, name):
        return getattr(self._context, name)

    def set_start_method(self, *_, **__):
        """SGLang asks for "spawn"."""

    def Process(self, *, target, args=(), kwargs=None, **options):  # noqa: N802
        # The server has the environment of its own start.
        given = (dict(os.environ), target, args, kwargs or {})
        return self._context.Process(target=_run, args=given, **options)


def _run(environment, target, args, kwargs):
    os.environ.clear()
    os.environ.update(environment)
    target(*args, **kwargs)
