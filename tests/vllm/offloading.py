"""Engines that offload keys to the CPU; on the CPU platform, a double of vLLM's copies."""

import torch

from tests.vllm.engine import ON_GPU, Engine

OPTIONS = {"cpu_bytes_to_use": 1 << 26}


def offloading(**extra):
    """The option by which an engine offloads."""
    return {
        "kv_transfer_config": {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {**OPTIONS, **extra},
        }
    }


class OffloadingEngine(Engine):
    """An engine that says what it stored and loaded.

    Attributes:
        stored: where each piece that was stored ends, in tokens; one for each group of layers.
        loads: where each piece that was asked back ends.
    """

    def __init__(self, folder, swaa, extra=None, **options):
        if not ON_GPU:
            copy_on_the_cpu()
        from vllm.distributed.kv_transfer import kv_transfer_state

        # A process of vLLM has one connector: a new engine would take that of another for its own.
        self._state, self._before = kv_transfer_state, kv_transfer_state._KV_CONNECTOR_AGENT
        self._state._KV_CONNECTOR_AGENT = None
        try:
            super().__init__(folder, swaa, **offloading(**(extra or {})), **options)
        except BaseException:
            self._state._KV_CONNECTOR_AGENT = self._before
            raise
        self.stored, self.loads = [], []
        manager = self.scheduler.connector.scheduler.manager
        complete, prepare = manager.complete_store, manager.prepare_load

        def storing(keys, context, *given):
            self.stored += [context.get_offload_key_position(key) for key in keys]
            return complete(keys, context, *given)

        def loading(keys, context):
            self.loads += [context.get_offload_key_position(key) for key in keys]
            return prepare(keys, context)

        manager.complete_store, manager.prepare_load = storing, loading

    def __exit__(self, *error):
        super().__exit__(*error)
        self._state._KV_CONNECTOR_AGENT = self._before

    def run(self, prompts, max_tokens=24, **options):
        outputs = super().run(prompts, max_tokens, **options)
        core = self.llm.llm_engine.engine_core.engine_core
        while self.scheduler.connector.has_pending_push_work():
            core.step_fn()
        return outputs

    def forget_all(self):
        """Empty both caches, and what is said of them."""
        assert self.llm.reset_prefix_cache(reset_connector=True)
        self.stored.clear()
        self.loads.clear()


def copy_on_the_cpu():
    """Let vLLM's connector run where it has no copies of its own: its worker refuses the CPU."""
    from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

    CPUOffloadingSpec.get_worker = lambda spec, caches: _copies()(caches, spec.blocks_per_chunk)


def _copies():
    from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult

    class Copies(OffloadingWorker):
        """Copies what vLLM's kernels copy, at once, and says so one step later."""

        def __init__(self, caches, blocks_per_chunk):
            self.tensors = [each.tensor for each in caches.tensors]
            self.refs, self.width = caches.group_data_refs, blocks_per_chunk
            self.held, self.done = {}, []

        def _places(self, blocks, chunks):
            """Block, what holds it, and the region and bytes of each layer's page."""
            block, chunk = iter(blocks.block_ids), iter(chunks.block_ids)
            for group, size in enumerate(blocks.group_sizes):
                first = blocks.block_indices[group]
                current = None
                for index in range(first, first + size):
                    if current is None or index % self.width == 0:
                        current = next(chunk)
                    number = next(block)
                    for layer, ref in enumerate(self.refs[group]):
                        place = (int(current), index % self.width, layer)
                        page = self.tensors[ref.tensor_idx][int(number), : ref.page_size_bytes]
                        yield place, page
            assert next(block, None) is None
            assert next(chunk, None) is None

        def submit_store(self, job_id, src_spec, dst_spec):
            self.held |= {place: page.clone() for place, page in self._places(src_spec, dst_spec)}
            return self._done(job_id)

        def submit_load(self, job_id, src_spec, dst_spec):
            for place, page in self._places(dst_spec, src_spec):
                page.copy_(self.held[place])
            return self._done(job_id)

        def _done(self, job_id):
            self.done.append(TransferResult(job_id=job_id, success=True))
            return True

        def get_finished(self):
            done, self.done = self.done, []
            return done

        def wait(self, job_ids):
            """Nothing is under way."""

    return Copies


def erase(engine):
    """Overwrite all keys in blocks that no request holds: only stored ones can come back."""
    layers = engine.llm.llm_engine.vllm_config.compilation_config.static_forward_context
    for layer in layers.values():
        if isinstance(getattr(layer, "kv_cache", None), torch.Tensor):
            layer.kv_cache.fill_(7.0)
