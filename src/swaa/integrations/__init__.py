"""Adapters that carry the rule of the mask into inference engines, through their own extension points."""
