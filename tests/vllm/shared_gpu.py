"""Several ranks on one GPU: NCCL takes them for machines of their own and connects them by sockets.

It refuses two ranks on one GPU, but only of one machine, which it knows by a name that can be
given. vLLM maps the GPUs that it counts to those that are there.
"""

import os

import torch

RANKS = 2
SHARED = os.environ.get("SWAA_TEST_DEVICE") == "cuda" and torch.cuda.device_count() < RANKS

if SHARED:
    # All that would go by one process writing into the other's GPU.
    os.environ.update(
        NCCL_SOCKET_IFNAME="lo",
        NCCL_NET="Socket",
        NCCL_MNNVL_ENABLE="0",
        NCCL_NVLS_ENABLE="0",
        VLLM_ALLREDUCE_USE_SYMM_MEM="0",
        VLLM_ALLREDUCE_USE_FLASHINFER="0",
    )


def sharing():
    """Options of an engine whose ranks share a GPU; none where each has its own."""
    if not SHARED:
        return {}
    return {
        "worker_cls": "tests.vllm.shared_gpu_worker.SharingWorker",
        "distributed_executor_backend": "mp",
        "disable_custom_all_reduce": True,
    }
