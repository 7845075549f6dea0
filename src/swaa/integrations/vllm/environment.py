"""Environment variables by which ``swaa serve`` tells vLLM's processes what it expects of them.

This file imports nothing: the plugin reads it even where swaa's hooks cannot be imported.
"""

REQUIRED = "SWAA_VLLM_REQUIRED"
"""What was asked for, as JSON: a failure ends the process at once, and so does an engine with
another configuration."""
REPORTS = "SWAA_VLLM_REPORTS"
"""The folder where ranks write what is active."""
