"""Serving engines on one long prompt: ``python -m swaa.benchmark.long_prompt``."""
