"""A second plugin, for tests: it looks into SGLang's processes, and breaks what it is told to.

``SWAA_TESTS_INSIDE`` holds JSON, with any of: ``log``, a file that gets a line for each batch;
``poison``, freed slots of the sliding pool hold NaN; ``staged``, decode batches go through the
buffers of CUDA graphs; ``undone``, the function whose hook is taken out;
``version``, of SGLang, as it says.
"""

import json
import os

import torch


def register():
    asked = json.loads(os.environ.get("SWAA_TESTS_INSIDE", "{}"))
    if "version" in asked:
        import sglang.version

        sglang.version.__version__ = asked["version"]
        return
    if "undone" in asked:
        _undo(asked["undone"])
    if asked.get("poison"):
        _poison_when_made()
    if "log" in asked or asked.get("staged"):
        _watch(asked.get("log"), asked.get("staged", False))


def _undo(path):
    """Take a hook out again, whichever plugin comes first."""
    from swaa.integrations import wrapping
    from swaa.integrations.sglang import hooks

    install = hooks.install

    def undoing():
        install()
        module = next(entry[0] for entry in hooks.HOOKS if entry[1] == path)
        owner = wrapping._owner(module, path)
        setattr(owner, path.split(".")[-1], getattr(owner, path.split(".")[-1]).swaa_original)

    undoing()
    hooks.install = undoing


def _poison_when_made():
    from sglang.srt.mem_cache import kv_cache_builder, registry

    create = registry.create_tree_cache

    def create_tree_cache(context):
        if context.is_hybrid_swa:
            _poison(context.params.token_to_kv_pool_allocator)
        return create(context)

    registry.create_tree_cache = create_tree_cache
    if hasattr(kv_cache_builder, "create_tree_cache"):
        kv_cache_builder.create_tree_cache = create_tree_cache


def _poison(allocator):
    """A freed slot of the sliding pool holds NaN."""
    pool, inner = allocator._kvcache.swa_kv_pool, allocator.swa_attn_allocator
    page = torch.arange(allocator.page_size, device=pool.k_buffer[0].device)

    def freeing(name, slots_of):
        original = getattr(inner, name)

        def free(indices, *args, **kwargs):
            slots = slots_of(indices).long()
            if slots.is_cuda:
                # The batch in flight may read them, and what is written next waits for it.
                torch.cuda.synchronize()
            for buffer in (*pool.k_buffer, *pool.v_buffer):
                buffer[slots] = float("nan")
            return original(indices, *args, **kwargs)

        setattr(inner, name, free)

    freeing("free", lambda slots: slots)
    freeing("free_page_ids", lambda ids: (ids[:, None] * allocator.page_size + page).reshape(-1))


def _watch(log, staged):
    from swaa.integrations.sglang.attention import SlidingAttention
    from swaa.integrations.sglang.metadata import stage

    original = SlidingAttention.init_forward_metadata

    def init_forward_metadata(self, forward_batch):
        original(self, forward_batch)
        mode = forward_batch.forward_mode
        if staged and mode.is_decode() and self.swaa_prepares_decoding:
            if not hasattr(self, "tests_buffers"):
                self.tests_buffers = self.swaa_table.buffers(32)
            self.swaa_batch = stage(self.tests_buffers, self.swaa_batch)
        if log and not mode.is_idle():
            _write(log, self, forward_batch)

    SlidingAttention.init_forward_metadata = init_forward_metadata


def _write(log, backend, batch):
    gathered = []
    if not batch.forward_mode.is_decode():
        for plan in dict.fromkeys(plan for plan in backend.swaa_plans if not plan.full):
            found = backend.swaa_batch
            made = backend._runs_of(plan, found.sliding or found.full, found)
            gathered += [run.chunks is not None for run in made]
    line = {
        "mode": batch.forward_mode.name,
        "requests": batch.batch_size,
        "rows": None if batch.extend_seq_lens_cpu is None else list(batch.extend_seq_lens_cpu),
        "cached": None
        if batch.extend_prefix_lens_cpu is None
        else list(batch.extend_prefix_lens_cpu),
        "prompts": backend.swaa_prompts.by_slot[batch.req_pool_indices].tolist(),
        "gathered": gathered,
    }
    with open(log, "a") as file:
        file.write(json.dumps(line) + "\n")
