"""Environment variables by which ``swaa serve`` tells SGLang's processes what it expects of them.

This file imports nothing: the plugin reads it even where swaa's hooks cannot be imported.
"""

REQUIRED = "SWAA_SGLANG_REQUIRED"
"""What was asked for, as JSON: an engine with another configuration ends."""
REPORTS = "SWAA_SGLANG_REPORTS"
"""The folder where ranks write what is active."""
