"""Transformers through AttentionInterface and AttentionMaskInterface: no class or module is patched."""

IMPLEMENTATION = "swaa"
"""Name under which attention and mask are registered (``config._attn_implementation``)."""
