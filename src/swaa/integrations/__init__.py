"""The rule of the mask in inference engines, through their own extension points."""
