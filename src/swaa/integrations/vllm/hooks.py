"""The seven functions of vLLM that swaa wraps, and the check that each still fits.

1. ``EngineArgs.create_engine_config``: read, check and resolve the configuration (front end).
2. ``Attention.__init__``: give each layer its backend class, and a second part where its KV heads
   do not all do the same (worker); vLLM's own choice does not know the layer that it chooses for.
3. ``WorkerWrapperBase.initialize_from_config``: turn prompt lengths on, check that the engine
   really has what the configuration says, refuse to start otherwise, and compile our kernels
   (worker).
4. ``KVCacheManager.get_computed_blocks``: end prefix-cache reuse before the dense tail (engine
   core).
5. ``get_kv_cache_groups``: keep a draft's layers in one group of the cache, the first; pack
   parts of layers that have unlike numbers of KV heads; publish states of linear layers only where
   keys are published (engine core, and workers that try the cache out).
6. ``beam_search`` of the offline and of the online front end: refuse it where rows have phases.
7. ``InputProcessor.process_inputs``: refuse streamed sessions with a dense tail (front end).
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.vllm.support import check_version
from swaa.integrations.wrapping import wrap

_ATTENTION_ARGUMENTS = ("cache_config", "per_layer_sliding_window", "prefix", "attn_backend")


def install() -> None:
    """Put the hooks in place; a second call does nothing.

    Raises:
        UnsupportedError: for a vLLM outside the tested range, or one that has changed.
        ImportError: when vLLM's modules are not where they were.
    """
    from vllm.version import __version__

    check_version(__version__)
    wrappers = (
        ("vllm.engine.arg_utils", "EngineArgs.create_engine_config", _configuring, ()),
        (
            "vllm.model_executor.layers.attention.attention",
            "Attention.__init__",
            _constructing,
            _ATTENTION_ARGUMENTS,
        ),
        (
            "vllm.v1.worker.worker_base",
            "WorkerWrapperBase.initialize_from_config",
            _activating,
            ("kv_cache_configs",),
        ),
        (
            "vllm.v1.core.kv_cache_manager",
            "KVCacheManager.get_computed_blocks",
            _looking_up,
            ("request",),
        ),
        (_grouping_module(), "get_kv_cache_groups", _grouping, ("kv_cache_spec",)),
    )
    for module, path, wrapper, arguments in wrappers:
        wrap("vLLM", module, path, wrapper, arguments)
    from swaa.integrations.vllm.kv_cache import register_specs

    register_specs()


def _grouping_module() -> str:
    """The module in which vLLM groups layers by their cache: 0.33 has a separate one."""
    newer = "vllm.v1.core.kv_cache_planning"
    return newer if importlib.util.find_spec(newer) else "vllm.v1.core.kv_cache_utils"


def _configuring(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        from swaa.integrations.vllm import connectors, drafts, settings, support

        made = original(self, *args, **kwargs)
        support.check_draft(made)
        found = settings.find(made)
        support.check_required(found)
        if found is not None:
            support.check_prefix_window(made)
            support.check_engine(made)
            support.check_states(made, found)
            model = drafts.served_model(made)
            fitted = found.fitted(
                model.get_total_num_hidden_layers(), kv_heads=model.get_total_num_kv_heads()
            )
            support.check_heads(made, fitted)
            connectors.check_offloading(made, fitted)
            settings.write_back(made, fitted)
            if made.kv_transfer_config is not None and fitted.config.window is not None:
                made.kv_transfer_config.kv_connector_module_path = connectors.OFFLOADING
            # Here, not on installation: workers do not need the front end's modules.
            for module, path, wrapper, arguments in _FRONT_END:
                wrap("vLLM", module, path, wrapper, arguments)
        return made

    return create_engine_config


def _constructing(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        from vllm.config import get_current_vllm_config_or_none

        from swaa.integrations.vllm import backend, drafts, head_parts, layers

        vllm_config = get_current_vllm_config_or_none()
        active = None if vllm_config is None else layers.active(vllm_config)
        if active is None:
            original(self, *args, **kwargs)
            return
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        extras = given.pop("extra_impl_args", {})
        given |= extras
        memory = active.memory(type(self), given, draft=drafts.builds_draft(vllm_config))
        if memory.plan.decode_heads:
            own = {name: given[name] for name in given if name not in ("self", *extras)}
            head_parts.build(self, original, own, memory)
            return
        if memory.stock:
            original(self, *args, **kwargs)
            self.attn_backend = backend.full_backend(self.attn_backend, memory)
        else:
            plain = {name: value for name, value in kwargs.items() if name not in extras}
            original(self, *args, **{**plain, "attn_backend": backend.sliding_backend(memory)})
        self.swaa = memory

    return __init__


def _activating(original: Callable[..., Any]) -> Callable[..., Any]:
    def initialize_from_config(self: Any, kv_cache_configs: list[Any]) -> Any:
        from swaa.integrations.vllm import layers, report, warmup

        active = layers.active(self.vllm_config)
        if active is None:
            report.say_full_attention(self)
            return original(self, kv_cache_configs)
        # Only now: the kernels of full layers had to be chosen without it.
        self.vllm_config.model_config.model_arch_config.rswa_window = active.prompt_length_switch
        made = original(self, kv_cache_configs)
        runner, config = self.worker.model_runner, self.vllm_config
        report.share_prompt_lengths(runner)
        report.verify(self, active, kv_cache_configs[self.global_rank])
        warmup.warm_up(
            report.attention_groups(runner),
            config.compilation_config.static_forward_context,
            config.model_config.max_model_len,
        )
        return made

    return initialize_from_config


def _looking_up(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_computed_blocks(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        from swaa.integrations.vllm.kv_cache import reusable_up_to, reuse_limit

        limit = reuse_limit(self.coordinator.single_type_managers, request)
        with reusable_up_to(limit):
            return original(self, request, *args, **kwargs)

    return get_computed_blocks


def _grouping(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_kv_cache_groups(
        vllm_config: Any, kv_cache_spec: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        from swaa.integrations.vllm import drafts, kv_cache, layers, packing

        active = layers.active(vllm_config)
        if active is not None and active.packed:
            return packing.pack(kv_cache_spec, vllm_config)
        if active is not None and active.prompt_only:
            tail = active.settings.config.dense_tail
            kv_cache_spec = kv_cache.bound_states(kv_cache_spec, dense_tail=tail)
        groups = original(vllm_config, kv_cache_spec, *args, **kwargs)
        if active is None:
            return groups
        return drafts.keep_together(groups, kv_cache_spec)

    return get_kv_cache_groups


def _searching_beams(original: Callable[..., Any]) -> Callable[..., Any]:
    def beam_search(self: Any, *args: Any, **kwargs: Any) -> Any:
        from swaa.integrations.vllm import layers

        engine = self.llm_engine if hasattr(self, "llm_engine") else self.engine_client
        active = layers.active(engine.vllm_config)
        if active is not None and active.prompt_length_switch is not None:
            raise UnsupportedError(
                "swaa: beam search hands every token to vLLM as the end of a new prompt, so full"
                " decode and dense tail would not hold; ask for n answers instead, or serve a"
                " recipe without both"
            )
        return original(self, *args, **kwargs)

    return beam_search


def _taking_in(original: Callable[..., Any]) -> Callable[..., Any]:
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        from swaa.integrations.vllm import layers

        if kwargs.get("resumable"):
            active = layers.active(self.vllm_config)
            if active is not None and active.settings.config.dense_tail:
                raise UnsupportedError(
                    "swaa: a streamed session's prompt grows, and the dense tail of each part would"
                    " need keys that are freed; send the whole prompt at once, or serve a recipe"
                    " without a dense tail"
                )
        return original(self, *args, **kwargs)

    return process_inputs


_OFFLINE, _ONLINE = (
    f"vllm.entrypoints.generate.beam_search.{end}" for end in ("offline", "online")
)
_FRONT_END = (
    (_OFFLINE, "BeamSearchOfflineMixin.beam_search", _searching_beams, ("params",)),
    (_ONLINE, "BeamSearchOnlineMixin.beam_search", _searching_beams, ("params",)),
    ("vllm.v1.engine.input_processor", "InputProcessor.process_inputs", _taking_in, ("resumable",)),
)
