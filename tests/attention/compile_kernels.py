"""Compiles every Triton kernel for a GPU that is not there: `python compile_kernels.py TARGET`.

The calls are those of the package, on tensors of the CPU; only the launch itself is left out. Each
size is lowered to LLVM's IR: on the way Triton refuses what a GPU lacks and lays out shared memory.
Machine code, which takes most of the time, is made of every kernel for the largest head_dim in 16
bits and for a small one in float32: the other sizes are the same operations, fewer of them. What
would hold no instruction that is not made elsewhere (compared, of sm_86, sm_90 and sm_100) is left
out.
Prints one JSON line per compiled kernel: its name, what it was compiled for, and the bytes of
shared memory that a program of it takes.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from triton import knobs
from triton.backends.amd.compiler import HIPOptions
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from swaa.attention.api import make_call
from swaa.attention.call import FP8, Selection
from swaa.attention.triton import (
    backward,
    decode,
    gather,
    hopper,
    pages,
    prefill,
    selected,
    selected_backward,
    tiles,
)
from swaa.attention.triton.sequences import numbers_of

KIB = 1024
TARGETS = {
    "a100": (GPUTarget("cuda", 80, 32), ("sm80",), 163 * KIB),
    "rtx3090": (GPUTarget("cuda", 86, 32), ("sm86", "sm80"), 99 * KIB),
    "h100": (GPUTarget("cuda", 90, 32), ("sm90",), 227 * KIB),
    "b200": (GPUTarget("cuda", 100, 32), ("sm100",), 227 * KIB),
    "rtx5090": (GPUTarget("cuda", 120, 32), ("sm120",), 99 * KIB),
    "mi300x": (GPUTarget("hip", "gfx942", 64), ("gfx942", "amd"), 64 * KIB),
    "rx7900": (GPUTarget("hip", "gfx1100", 32), ("gfx1100", "amd"), 64 * KIB),
}
"""What is compiled for, which tables of tiles hold there, shared memory that a program may take."""


class AbsentGPU:
    """Answers what Triton asks of a driver in order to compile."""

    def __init__(self, target):
        self.get_current_target = lambda: target
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device=None: 0
        self.get_active_torch_device = lambda: torch.device("cpu")


def hash_of_amd(options):
    """Part of the key of Triton's cache, by its libraries' contents, as Triton has NVIDIA's.

    Triton takes their paths, so that every venv of a machine would compile anew for AMD.
    """
    libraries = [
        (name, hashlib.sha256(Path(path).read_bytes()).hexdigest())
        for name, path in options.extern_libs
    ]
    named = {**vars(options), "extern_libs": libraries}
    return hashlib.sha256(repr(sorted(named.items())).encode()).hexdigest()


def pretend(name):
    """Let the package take this machine for one with a GPU of that name."""
    target, tables, shared = TARGETS[name]
    driver.set_active(AbsentGPU(target))
    HIPOptions.hash = hash_of_amd
    compile_and_run = JITFunction.run
    case = {}

    def only_compile(self, *args, grid, warmup, **options):
        kernel = compile_and_run(self, *args, grid=grid, warmup=True, **options)
        print(json.dumps(case | {"kernel": self.__name__, "shared": kernel.metadata.shared}))
        return kernel

    JITFunction.run = only_compile
    tiles.table_names = lambda device: (*tables, "default")
    hopper.is_hopper = lambda device: name == "h100"
    hopper.multiprocessors = lambda device: 132
    decode._shared_bytes = lambda device: shared
    decode._multiprocessors = lambda device: 132
    for module in (decode, pages):
        module.can_overlap = lambda device: target.backend == "cuda" and target.arch >= 90
    return case


def stop_at_llvm(backend, stages, *_):
    """Replace what follows LLVM's IR by nothing; a hook of Triton's."""

    def nothing(module, metadata):
        metadata["name"] = "none"
        return ""

    names = list(stages)
    stages.update(dict.fromkeys(names[names.index("llir") + 1 :], nothing))


def want_machine_code(wanted):
    """Make machine code from now on, or stop at LLVM's IR as Triton first writes it."""
    knobs.runtime.add_stages_inspection_hook = None if wanted else stop_at_llvm
    # Part of the key of Triton's cache, which the hook is not.
    if wanted:
        os.environ.pop("DISABLE_LLVM_OPT", None)
    else:
        os.environ["DISABLE_LLVM_OPT"] = "1"


def compile_all(case):
    half, single = torch.bfloat16, torch.float32
    target = driver.active.get_current_target()
    complete = [(256, half), (16, single)]
    if target.backend == "cuda" and target.arch < 90:
        complete.pop()  # in float32 sm_86 has no instruction that sm_90 has not
    for head_dim, dtype in (*complete, (64, half), (128, half), (256, single)):
        whole = (head_dim, dtype) in complete
        want_machine_code(whole)
        case |= {"head_dim": head_dim, "dtype": str(dtype).removeprefix("torch.")}
        few(head_dim, dtype, whole)
        many(head_dim, dtype, whole)
    want_machine_code(True)
    cache = torch.randn(4, 2, 16, 128, dtype=torch.bfloat16)
    gather.gather(cache, torch.zeros(8, dtype=torch.int64))
    if target.backend == "cuda" and target.arch >= 89:
        gather.gather(cache.to(FP8), torch.zeros(8, dtype=torch.int64), half)
        # What float32 takes to read fp8 is the same for sm_90 and sm_100.
        for head_dim, dtype in complete if target.arch == 90 else complete[:1]:
            case |= {"head_dim": head_dim, "dtype": str(dtype).removeprefix("torch.")}
            few(head_dim, dtype, True, stored=FP8)


def few(head_dim, dtype, whole, stored=None):
    """Decoding rows over a cache and over pages; a chunk of a prompt over pages.

    One row alone takes less shared memory than a chunk and the same operations on smaller tiles:
    only for the size that is compiled as a whole in 16 bits. Next to float32 and to what is stored
    as fp8, rows that choose and chunks have the same instructions.
    """
    pages = torch.randn(40, 16, 2, head_dim, dtype=dtype).to(stored or dtype)
    table = torch.zeros(2, 32, dtype=torch.int32)
    paged = {"block_table": table, "kv_lens": torch.tensor([500, 33], dtype=torch.int32)}
    sliding = {"window": 40, "sink_tokens": 5}
    choosing = {**sliding, "full_from": 0, "decode_keys": 64}
    q = torch.randn(2, 1, 8, head_dim, dtype=dtype)
    if head_dim >= 128 or dtype == torch.float32:  # the usual one, and the largest
        decode.attend(make_call(q, pages, pages, **choosing, **paged))
    if whole and dtype != torch.float32 and stored is None:
        k = torch.randn(1, 300, 2, head_dim, dtype=dtype)
        decode.attend(make_call(q[:1], k, k, window=None))
        decode.attend(make_call(q, pages, pages, **sliding, **paged))
    # Without tensor cores each product is an instruction: few rows where there are small heads.
    q = torch.randn(2, 200 if head_dim >= 64 else 8, 8, head_dim, dtype=dtype)
    decode.attend(make_call(q, pages, pages, **sliding, **paged))


def many(head_dim, dtype, whole):
    """A prompt, by the kernel of this GPU and by the portable one, and its gradients.

    Packed sequences take Hopper's kernel as much shared memory as others, and a few loads more:
    only for the size that is compiled as a whole.
    """
    q = torch.randn(1, 300, 4, head_dim, dtype=dtype)
    k, v = torch.randn(2, 1, 300, 2, head_dim, dtype=dtype)
    numbers = numbers_of(make_call(q, k, v, window=50, sink_tokens=10))
    output, lse = prefill.forward(q, k, v, numbers, 0.1)
    if dtype == torch.float32:
        return
    if hopper.is_hopper(q.device):
        if whole:
            ends = torch.tensor([0, 100, 300], dtype=torch.int32)
            call = make_call(q, k, v, window=50, cu_seqlens_q=ends, cu_seqlens_k=ends)
            prefill.forward(q, k, v, numbers_of(call), 0.1)
        tile = tiles.tile_for("prefill", q.device, dtype, head_dim)
        prefill.forward(q, k, v, numbers, 0.1, tile)
    backward.backward(q, k, v, output, lse, torch.ones_like(q), None, numbers, 0.1)
    if head_dim >= 128:  # the usual one, and the largest
        chosen(q, k, v)


def chosen(q, k, v):
    """Keys that a prompt's blocks of rows chose, and the gradients that go through them."""
    numbers = numbers_of(make_call(q, k, v, window=50, sink_tokens=10))
    blocks = torch.zeros(1, 2, 3, 1, dtype=torch.int32)
    selection = Selection(blocks, torch.ones(1, 2, 3, dtype=torch.int32))
    output, lse = torch.zeros_like(q), torch.zeros(1, 4, 300)
    selected.add_selected(q, k, v, numbers, 0.1, selection, output, lse)
    step = backward.Step(q, k, v, torch.ones_like(q), lse, torch.zeros_like(lse), numbers, 0.1)
    selected_backward.add_to_queries(step, selection, torch.zeros(q.shape))
    selected_backward.add_to_keys(step, selection, *torch.zeros(2, *k.shape))


if __name__ == "__main__":
    compile_all(pretend(sys.argv[1]))
