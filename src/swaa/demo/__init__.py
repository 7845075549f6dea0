"""A real model loses a fact under a plain sliding window and finds it again under a recipe."""

from swaa.demo.needles import Needle, make_needles
from swaa.demo.run import DemoOptions, DemoOutcome, DemoRow, demo_settings, doubt, run_demo

__all__ = [
    "DemoOptions",
    "DemoOutcome",
    "DemoRow",
    "Needle",
    "demo_settings",
    "doubt",
    "make_needles",
    "run_demo",
]
