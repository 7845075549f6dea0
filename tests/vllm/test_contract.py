"""What the plugin relies on in vLLM, looked up in the vLLM that is installed.

Most of it runs in the other tests on the CPU. This names what broke when a version moves on, and
covers what only a GPU would reach.
"""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

from tests.overrides import overrides
from tests.vllm.conftest import MISSING

BACKENDS = "vllm.v1.attention.backend"
MANAGERS = "vllm.v1.core.single_type_kv_cache_manager"
COMPRESSED = "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors"
CONNECTORS = "vllm.distributed.kv_transfer.kv_connector.v1"
GROUPING = "vllm.v1.core.kv_cache_utils"
if not MISSING:
    from swaa.integrations.vllm.hooks import _grouping_module

    GROUPING = _grouping_module()

PARAMETERS = {
    "vllm.engine.arg_utils:EngineArgs.create_engine_config": (),
    "vllm.model_executor.layers.attention.attention:Attention.__init__": (
        *("num_heads", "head_size", "scale", "num_kv_heads", "cache_config", "prefix"),
        *("per_layer_sliding_window", "attn_type", "attn_backend"),
    ),
    "vllm.v1.worker.worker_base:WorkerWrapperBase.initialize_from_config": ("kv_cache_configs",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.get_computed_blocks": ("request",),
    "vllm.utils.torch_utils:resolve_kv_cache_dtype_string": ("kv_cache_dtype", "model_config"),
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": ("resumable",),
    "vllm.entrypoints.generate.beam_search.offline:BeamSearchOfflineMixin.beam_search": ("params",),
    "vllm.entrypoints.generate.beam_search.online:BeamSearchOnlineMixin.beam_search": ("params",),
    f"{GROUPING}:get_kv_cache_groups": ("vllm_config", "kv_cache_spec"),
    f"{BACKENDS}:AttentionImpl.forward": (
        *("layer", "query", "key", "value", "kv_cache", "attn_metadata", "output"),
        *("output_scale", "output_block_scale"),
    ),
    f"{BACKENDS}:AttentionBackend.customize_spec": ("spec",),
    f"{BACKENDS}:AttentionBackend.supported_kv_cache_layouts": (),
    "vllm.model_executor.layers.attention.attention:Attention.forward": (
        *("query", "key", "value", "output_shape", "output_dtype"),
    ),
    "vllm.model_executor.layers.attention.attention:Attention.process_weights_after_loading": (
        "act_dtype",
    ),
    "vllm.config:ModelConfig.get_total_num_kv_heads": (),
    "vllm.config:ModelConfig.is_multimodal_model": (),
    f"{BACKENDS}:AttentionMetadataBuilder.__init__": (
        *("kv_cache_spec", "layer_names", "vllm_config", "device"),
    ),
    f"{BACKENDS}:AttentionMetadataBuilder._init_reorder_batch_threshold": (
        "reorder_batch_threshold",
    ),
    f"{MANAGERS}:SingleTypeKVCacheManager._remove_blocks_in_range": ("request_id",),
    f"{MANAGERS}:SlidingWindowManager.find_longest_cache_hit": (
        *("block_hashes", "max_length", "kv_cache_group_ids", "block_pool", "kv_cache_spec"),
        "alignment_tokens",
    ),
    "vllm.v1.core.kv_cache_utils:resolve_block_hashes": (
        *("supports_fine_grained_hash_lookup", "alignment_tokens"),
    ),
    "vllm.v1.attention.ops.triton_reshape_and_cache_flash:triton_reshape_and_cache_flash": (
        *("key", "value", "key_cache", "value_cache", "slot_mapping", "kv_cache_dtype"),
        *("k_scale", "v_scale"),
    ),
    f"{CONNECTORS}.offloading.scheduler:OffloadingConnectorScheduler.get_num_new_matched_tokens": (
        *("request", "num_computed_tokens", "max_num_new_tokens"),
    ),
}
FIELDS = {
    f"{BACKENDS}:CommonAttentionMetadata": (
        *("query_start_loc", "query_start_loc_cpu", "seq_lens", "seq_lens_cpu_upper_bound"),
        *("num_reqs", "num_actual_tokens", "max_query_len", "max_seq_len"),
        *("block_table_tensor", "slot_mapping", "rswa_prefix_lens", "req_idx"),
    ),
    "vllm.v1.kv_cache_interface:SlidingWindowSpec": ("block_size", "sliding_window"),
    "vllm.config:AttentionConfig": ("use_non_causal",),
    "vllm.config:KVTransferConfig": (
        *("kv_connector", "kv_role", "kv_connector_module_path", "kv_connector_extra_config"),
    ),
    "vllm.config.model_arch:ModelArchitectureConfig": ("rswa_window",),
    "vllm.v1.kv_cache_interface:KVCacheGroupSpec": ("layer_names", "kv_cache_spec"),
    "vllm.v1.kv_cache_interface:UniformTypeKVCacheSpecs": ("block_size", "kv_cache_specs"),
    "vllm.config:SpeculativeConfig": (
        *("method", "num_speculative_tokens", "kv_cache_dtype", "enable_adaptive_verification"),
        *("draft_model_config", "target_model_config", "parallel_drafting"),
    ),
}
SAYS = {
    "vllm.config:ModelConfig": ("def is_mm_prefix_lm(self)", "def is_hybrid(self)"),
    # The V2 model runner, which only GPUs (and Triton's interpreter) run.
    "vllm.v1.worker.gpu.states:RequestState": ("self.prompt_len = UvaBackedTensor",),
    "vllm.v1.worker.gpu.buffer_utils:UvaBackedTensor": ("self.np =", "self.gpu ="),
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner": (
        *("self.req_states", "self.attn_groups", "self.req_states.prompt_len.gpu[idx_mapping]"),
    ),
    "vllm.v1.worker.gpu.model_states.default:DefaultModelState": (
        *("req_idx=input_batch.idx_mapping_np", "rswa_prefix_lens=input_batch.prompt_lens"),
        "seq_lens_cpu_upper_bound=seq_lens_cpu_upper_bound",
    ),
    # Models with linear layers: their prompt lengths, and states published at ends of blocks.
    "vllm.v1.worker.gpu.model_states.mamba_hybrid:MambaHybridModelState": (
        "rswa_prefix_lens=input_batch.prompt_lens",
    ),
    "vllm.v1.core.kv_cache_utils:partial_hash_hits_enabled": ("spec.block_size > hash_block_size",),
    "vllm.v1.worker.gpu.attn_utils:init_attn_backend": ("get_attn_backend()",),
    # One object for all builders of a group, which make their numbers once.
    "vllm.v1.worker.gpu.attn_utils:build_attn_metadata": ("for attn_group in attn_groups[i]:",),
    # Blocks of unlike layers, one after another: offsets within a block, one stride for all.
    f"{GROUPING}:get_kv_cache_config_from_groups": (
        *("layout.is_block_outermost", "offset=byte_offset", "group_spec.kv_cache_specs.items()"),
    ),
    # Draft models: how their layers are named, and whose block table they are handed. When the
    # first runner asks for the draft's own group, drafts.py need not put it first any more.
    "vllm.v1.spec_decode.draft_model:DraftModelProposer": (
        *("model_config=spec.draft_model_config", 'prefix="draft_model"'),
    ),
    "vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator:StandaloneARSpeculator": (
        *("model_config=self.draft_model_config", 'prefix="draft_model"'),
    ),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._build_attention_metadata": (
        "else:\n                    spec_decode_common_attn_metadata = cm\n",
    ),
    # Drafts that read the served model's states: by what they are told from it while it is built.
    "vllm.compilation.backends:set_model_tag": ("model_tag = tag",),
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer": (
        *('set_model_tag("eagle_head")', "self._draft_attn_layer_names = {"),
    ),
    "vllm.v1.worker.gpu.spec_decode.eagle.utils:load_eagle_model": ('set_model_tag("eagle_head")',),
    "vllm.v1.worker.gpu.spec_decode.speculator:DraftModelSpeculator": (
        "self.draft_attn_layer_names = ",
    ),
    "vllm.config:SpeculativeConfig.use_multi_module_mtp": ("num_nextn_predict_layers",),
    # Streamed sessions: what is generated becomes prompt, once it is computed.
    "vllm.v1.core.sched.scheduler:Scheduler._update_request_as_session": (
        *("session.prompt_token_ids.extend(kept_output_tokens)", "session.num_prompt_tokens = "),
    ),
    "vllm.v1.engine.async_llm:AsyncLLM._add_streaming_input_request": ("resumable=True",),
    "vllm.config.parallel:ParallelConfig.use_ubatching": ("enable_dbo", "ubatch_size"),
    # Factors of fp8 keys and values, on the host; a checkpoint's own scheme of them.
    "vllm.model_executor.layers.attention.attention:set_default_quant_scales": (
        *("layer._k_scale_float = 1.0", "layer._v_scale_float = 1.0"),
    ),
    "vllm.model_executor.layers.quantization.kv_cache:BaseKVCacheMethod": (
        *("layer._k_scale_float = k_scale", "layer._v_scale_float = v_scale"),
    ),
    f"{COMPRESSED}:CompressedTensorsKVCacheMethod": (
        *("layer._k_scale_float = _to_scalar", "layer._v_scale_float = _to_scalar"),
    ),
    f"{COMPRESSED}:CompressedTensorsConfig.__init__": ("self.kv_cache_scheme = kv_cache_scheme",),
    f"{BACKENDS}:AttentionImplBase": ("supports_quant_query_input: bool = False",),
    # KV offloading: a request's own limit, and a connector found by its module first.
    f"{CONNECTORS}.offloading.scheduler:RequestOffloadState": ('params.get("max_offload_tokens")',),
    "vllm.distributed.kv_transfer.kv_connector.factory:KVConnectorFactory.get_connector_class": (
        "if connector_module_path:\n            # External module path takes priority",
    ),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots": (
        "total_computed_tokens - request.num_in_flight_tokens",
    ),
}
OURS = (
    *("kv_cache:AllKeysSpec", "kv_cache:TailSpec", "kv_cache:SinkWindowSpec"),
    *("kv_cache:AllKeysManager", "kv_cache:TailManager", "kv_cache:SinkWindowManager"),
    *("kv_cache:StateSpec", "kv_cache:StateManager"),
    "offloading:OffloadingConnector",
    *("attention:CPUAttention", "attention:GPUAttention", "metadata:SlidingMetadataBuilder"),
)


def found(name):
    module, path = name.split(":")
    thing = importlib.import_module(module)
    for part in path.split("."):
        thing = getattr(thing, part)
    thing = getattr(thing, "fget", thing)  # of a property
    return getattr(thing, "swaa_original", thing)


CHECKED = (
    *("head_size", "dtype", "kv_cache_dtype", "block_size", "use_mla", "has_sink", "use_sparse"),
    *("use_mm_prefix", "use_per_head_quant_scales", "device_capability", "attn_type"),
    *("has_sliding_window", "use_non_causal", "use_batch_invariant", "use_kv_connector", "use_pcp"),
    *("use_adaptive_verification", "use_dcp", "use_rswa"),
)
"""What vLLM asks of a backend that it chooses; docs/reference/vllm.md says what becomes of each."""


def test_vllm_asks_nothing_else_of_backends():
    asked = inspect.signature(found(f"{BACKENDS}:AttentionBackend.validate_configuration"))
    assert set(asked.parameters) == set(CHECKED)
    document = (Path(__file__).parents[2] / "docs/reference/vllm.md").read_text("utf-8")
    assert not [name for name in CHECKED if f"`{name}`" not in document]


@pytest.mark.parametrize("name", PARAMETERS)
def test_functions_take_what_we_pass(name):
    missing = set(PARAMETERS[name]) - set(inspect.signature(found(name)).parameters)
    assert not missing


@pytest.mark.parametrize("name", FIELDS)
def test_classes_hold_what_we_read(name):
    fields = {field.name for field in dataclasses.fields(found(name))}
    assert not set(FIELDS[name]) - fields


@pytest.mark.parametrize("name", SAYS)
def test_sources_do_what_we_build_on(name):
    source = inspect.getsource(found(name))
    assert not [words for words in SAYS[name] if words not in source]


@pytest.mark.parametrize("name", OURS)
def test_methods_take_what_those_they_replace_take(name):
    any_number = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    checked = []
    for method, ours, theirs in overrides(found(f"swaa.integrations.vllm.{name}"), "vllm"):
        taken = inspect.signature(ours).parameters
        checked.append(method)
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
            continue
        wanted = inspect.signature(theirs).parameters
        missing = [word for word in wanted if word not in taken and word not in ("self", "cls")]
        assert not [word for word in missing if wanted[word].kind not in any_number], method
    assert checked or name in ("kv_cache:TailSpec", "kv_cache:AllKeysSpec", "kv_cache:StateSpec")


def test_sliding_specs_say_what_the_worker_may_forget():
    from vllm.v1.kv_cache_interface import SlidingWindowSpec

    theirs = getattr(SlidingWindowSpec, "num_retained_tokens", None)
    assert theirs is None or isinstance(theirs, property)  # vLLM 0.32 has none
