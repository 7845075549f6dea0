"""vLLM on one long prompt, stock and under recipes: ``python -m swaa.benchmark.long_prompt``."""
