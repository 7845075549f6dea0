"""Benchmarks of kernels, of generation, of a server and of vLLM on one long prompt."""
