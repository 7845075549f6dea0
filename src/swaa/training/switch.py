"""The length switch of adapters, under the name it had before :mod:`swaa.adapter`."""

from swaa.adapter import Switch, switch_by_length

__all__ = ["Switch", "switch_by_length"]
