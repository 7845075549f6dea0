"""Runs every Triton kernel on one small case, for NVIDIA's compute-sanitizer to look on.

Prints, as JSON, the bytes of shared memory that the Hopper kernel's programs take.
"""

import json

import torch

from swaa.attention.triton import gather, hopper_kernel
from tests.attention.compile_kernels import few, many

HEAD_DIM = 64


def main():
    torch.manual_seed(0)
    torch.set_default_device("cuda")
    few(HEAD_DIM, torch.bfloat16, whole=True)
    many(HEAD_DIM, torch.bfloat16, whole=True)
    cache = torch.randn(4, 2, 16, HEAD_DIM, dtype=torch.bfloat16)
    gather.gather(cache, torch.zeros(8, dtype=torch.int64))
    torch.cuda.synchronize()
    compiled = hopper_kernel.hopper_kernel.device_caches[torch.cuda.current_device()][0]
    print(json.dumps(sorted({kernel.metadata.shared for kernel in compiled.values()})))


if __name__ == "__main__":
    main()
