"""A served endpoint under load, one recipe after another."""

from swaa.benchmark.serve.measure import Endpoint, Launcher, ServeRun

__all__ = ["Endpoint", "Launcher", "ServeRun"]
