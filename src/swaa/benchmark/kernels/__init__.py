"""Attention kernels next to the best stock ones, and the tiles that make ours fastest."""
