"""The mask's rule in inference engines, through their own extension points."""
