"""What the plugin relies on in SGLang, looked up in the SGLang that is installed."""

import importlib
import inspect

import pytest

from tests.overrides import overrides
from tests.sglang.conftest import MISSING

CACHE = "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache"
BACKEND = "sglang.srt.layers.attention.base_attn_backend:AttentionBackend"
PARAMETERS = {
    "sglang.srt.managers.scheduler:Scheduler.init_model_config": (),
    "sglang.srt.configs.model_config:ModelConfig._derive_hybrid_model": (),
    "sglang.srt.model_executor.pool_configurator:create_memory_pool_configurator": ("kvc",),
    "sglang.srt.model_executor.forward_batch_info:ForwardBatch.init_new": (
        *("batch", "model_runner"),
    ),
    "sglang.srt.managers.scheduler:Scheduler.init_model_worker": (),
    "sglang.srt.beam_search.coordinator:BeamCoordinator.validate_and_init": ("req", "recv_req"),
    f"{CACHE}.checkpoint": ("req", "up_to"),
    f"{CACHE}.lock": ("node_id", "skip_lock_components"),
    f"{CACHE}.unlock": ("lock",),
    f"{CACHE}.insert": ("params",),
    f"{CACHE}.match_prefix": ("params",),
    f"{CACHE}.swa_reprefill_tail_tokens": ("req",),
    "sglang.srt.mem_cache.base_prefix_cache:BasePrefixCache.evict_sliding_windows": (
        *("req", "pre_len", "eviction_interval"),
    ),
    f"{BACKEND}.init_cuda_graph_state": ("max_bs", "max_num_tokens"),
    f"{BACKEND}.init_forward_metadata_out_graph": ("forward_batch", "in_capture"),
    f"{BACKEND}.forward_extend": ("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
    f"{BACKEND}.forward_decode": ("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
}
SAYS = {
    # Prompt lengths: what a request came with, which no retraction changes.
    "sglang.srt.managers.schedule_batch:Req.__init__": (
        "self.origin_input_ids = origin_input_ids",
    ),
    # Rows of generated tokens next to prompts are extended like them.
    "sglang.srt.model_executor.runner.eager_runner:EagerRunner.execute": (
        "forward_batch.forward_mode = ForwardMode.EXTEND",
    ),
    # Reuse ends so many tokens before a request's end.
    "sglang.srt.mem_cache.common:_req_radix_key": ("tree_cache.swa_reprefill_tail_tokens(req)",),
    # Admission goes by the window that we declare.
    "sglang.srt.mem_cache.prefill_budget:SWAPrefillBudget.swa_tokens": (
        "sliding_window_size=self.tree_cache.sliding_window_size",
    ),
    "sglang.srt.configs.model_config:get_hybrid_layer_ids": (
        'getattr(hf_text_config, "hybrid_layer_pattern", None) is not None',
    ),
    # Graphs of decode batches ask for their numbers outside of the graph.
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner:DecodeCudaGraphRunner": (
        *("init_forward_metadata_out_graph(forward_batch, in_capture=True)",),
        "attn_backend.init_forward_metadata_out_graph(fb_view)",
    ),
    # Plugins and hooks that fail are only logged.
    "sglang.srt.plugins:load_plugins": ("except Exception:", "logger.exception("),
}


def found(name):
    module, path = name.split(":")
    thing = importlib.import_module(module)
    for part in path.split("."):
        thing = getattr(thing, part)
    return inspect.unwrap(getattr(thing, "__func__", thing))


@pytest.mark.parametrize("name", PARAMETERS)
def test_functions_take_what_we_pass(name):
    assert not set(PARAMETERS[name]) - set(inspect.signature(found(name)).parameters)


@pytest.mark.parametrize("name", SAYS)
def test_sources_do_what_we_build_on(name):
    source = inspect.getsource(found(name))
    assert not [words for words in SAYS[name] if words not in source]


def test_every_hook_is_named_here():
    if MISSING:
        return
    from swaa.integrations.sglang.hooks import HOOKS

    assert {f"{module}:{path}" for module, path, *_ in HOOKS} <= PARAMETERS.keys()


@pytest.mark.parametrize("name", ["cache:SwaaRadixCache", "attention:SlidingAttention"])
def test_methods_take_what_those_they_replace_take(name):
    checked = []
    for method, ours, theirs in overrides(found(f"swaa.integrations.sglang.{name}"), "sglang"):
        taken = inspect.signature(ours).parameters
        checked.append(method)
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
            continue
        wanted = inspect.signature(theirs).parameters
        assert not [word for word in wanted if word not in taken and word != "self"], method
    assert checked
