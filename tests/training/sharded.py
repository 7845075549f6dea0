"""Runs `swaa train` as one process of FSDP2 on the CPU: `python -m tests.training.sharded ARGS`.

accelerate shards on accelerators only and falls back to DDP on a CPU without a word. Here it is
told that the CPUs are GPUs; everything after that decision is its ordinary FSDP2 path. The second
process reads its data long after the first, as on machines that share a slow disk.
"""

import os
import sys
import time

import torch
import torch.distributed.fsdp as fsdp
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from swaa.cli import main as swaa
from swaa.training import run

STALL = 5
"""Seconds."""


def main(argv):
    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ["FSDP_VERSION"] = "2"
    os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    shards = []
    shard = fsdp.fully_shard

    def counted(modules, **options):
        shards.append(modules)
        return shard(modules, **options)

    fsdp.fully_shard = counted
    if torch.distributed.get_rank() == 1:
        load = run.load_conversations

        def late(*args, **options):
            time.sleep(STALL)
            return load(*args, **options)

        run.load_conversations = late
    code = swaa(argv)
    assert len(shards) > 4, "nothing was sharded"
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
