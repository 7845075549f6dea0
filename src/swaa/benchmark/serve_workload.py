"""The workload of server benchmarks, under the name it had before :mod:`swaa.benchmark.serve`."""

from swaa.benchmark.serve.workload import Workload

__all__ = ["Workload"]
