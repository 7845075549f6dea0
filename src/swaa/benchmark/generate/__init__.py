"""Generation end to end, next to the same model with the best stock attention."""
