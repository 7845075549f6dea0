"""A served endpoint under load, one recipe after another."""
