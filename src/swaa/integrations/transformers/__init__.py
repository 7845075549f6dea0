"""Transformers, through AttentionInterface and AttentionMaskInterface: no class is patched."""

IMPLEMENTATION = "swaa"
"""Name under which attention and mask are registered (``config._attn_implementation``)."""
UNTRACED_IMPLEMENTATION = "swaa_untraced"
"""Name of the attention function that torch.compile does not trace into."""
