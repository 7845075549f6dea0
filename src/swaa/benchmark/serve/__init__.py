"""A served endpoint under load, one recipe after the other."""
