"""Runs the benchmark: see :mod:`swaa.benchmark.long_prompt.measure`."""

from swaa.benchmark.long_prompt.measure import main

main()
