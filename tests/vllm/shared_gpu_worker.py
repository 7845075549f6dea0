"""What vLLM's workers are where ranks share a GPU; imported by them alone."""

import os

from vllm.v1.worker.gpu_worker import Worker

from tests.vllm.shared_gpu import RANKS


class SharingWorker(Worker):
    """One rank of several on the first GPU."""

    def init_device(self):
        os.environ["NCCL_HOSTID"] = f"process-{os.getpid()}"
        self.parallel_config.assigned_physical_gpu_ids = [0] * RANKS
        super().init_device()
