"""Which layers stay full: signals per layer, search over sets, and proof on samples held out."""
