"""Exact attention through a sliding window, sinks and full rows: one function, several backends."""

from swaa.attention.api import BACKENDS, BackendChoice, choose_backend, swaa_attention
from swaa.attention.call import AttentionCall, AttentionOutput, BackendError, Selection

__all__ = [
    "BACKENDS",
    "AttentionCall",
    "AttentionOutput",
    "BackendChoice",
    "BackendError",
    "Selection",
    "choose_backend",
    "swaa_attention",
]
