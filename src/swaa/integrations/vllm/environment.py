"""Environment variables by which ``swaa serve`` tells vLLM's processes what it expects of them.

The standard library only: the plugin reads them even where swaa's hooks cannot be imported.
"""

REQUIRED = "SWAA_VLLM_REQUIRED"
"""What was asked for as JSON: a failure ends the process at once, and so does an engine that is
configured otherwise."""
REPORTS = "SWAA_VLLM_REPORTS"
"""The folder where ranks write what is active."""
