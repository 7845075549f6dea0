"""Attention kernels next to the best stock ones, and the tiles they run fastest with."""
