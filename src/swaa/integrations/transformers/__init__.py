"""Transformers by AttentionInterface and AttentionMaskInterface: no class is patched."""

IMPLEMENTATION = "swaa"
"""Name under which attention and mask are registered (``config._attn_implementation``)."""
