"""The functions of SGLang that swaa wraps, and the check that each wrapper is in place.

1. ``Scheduler.init_model_config``: refuse what cannot be served, before weights are loaded.
2. ``ModelConfig._derive_hybrid_model``: declare the layers that slide in decoding, for their pool.
3. ``create_memory_pool_configurator``: size both pools.
4. ``ForwardBatch.init_new``: note where each request's prompt ends.
5. ``Scheduler.init_model_worker``: check that the engine has what the configuration says, and
   refuse to start otherwise.
6. ``BeamCoordinator.validate_and_init``: refuse beam search, request by request.

SGLang's own hooks are applied after plugins have run, and one that fails is only logged. So these
are put in place at once, and a failure is the plugin's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swaa.integrations.sglang.support import CACHE, PREFIX, STOCK, check_version
from swaa.integrations.wrapping import wrap


def install() -> None:
    """Put hooks, backends and cache in place; a second call does nothing.

    Raises:
        UnsupportedError: for an SGLang that was not tested, or one that has changed.
        ImportError: when SGLang's modules are not where they were.
    """
    from sglang.srt.arg_groups import choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.mem_cache import registry
    from sglang.version import __version__

    check_version(__version__)
    for module, path, wrapper, arguments in HOOKS:
        wrap("SGLang", module, path, wrapper, arguments)
    known = choices.ATTENTION_BACKEND_CHOICES
    names = [PREFIX + stock for stock in STOCK]
    choices.add_attention_backend_choices([name for name in names if name not in known])
    for name in names:
        register_attention_backend(name)(_backend(name.removeprefix(PREFIX)))
    if CACHE not in registry.registered_radix_cache_backends():
        registry.register_radix_cache_backend(CACHE, _cache)


def _backend(stock: str) -> Callable[[Any], Any]:
    def make(runner: Any) -> Any:
        from swaa.integrations.sglang.backend import factory

        return factory(stock)(runner)

    return make


def _cache(context: Any) -> Any:
    from swaa.integrations.sglang.cache import make

    return make(context)


def _reading(original: Callable[..., Any]) -> Callable[..., Any]:
    def init_model_config(self: Any) -> None:
        from swaa.integrations.sglang import settings, support

        original(self)
        found = settings.find(self.model_config)
        support.check_required(found)
        if found is not None:
            settings.refuse_stray_keys(self.server_args.json_model_override_args)
            support.check_engine(self.model_config, found.config)

    return init_model_config


def _declaring(original: Callable[..., Any]) -> Callable[..., Any]:
    def _derive_hybrid_model(self: Any) -> None:
        if not self.is_draft_model and not self.disable_hybrid_swa_memory:
            from swaa.integrations.sglang import pool

            pool.declare(self)
        original(self)

    return _derive_hybrid_model


def _sizing(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_memory_pool_configurator(kvc: Any) -> Any:
        from swaa.integrations.sglang import pool, settings

        if kvc.is_hybrid_swa and settings.find(kvc.model_config) is not None:
            return pool.PoolConfigurator(kvc)
        return original(kvc)

    return create_memory_pool_configurator


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    def init_new(cls: type[Any], batch: Any, model_runner: Any, **kwargs: Any) -> Any:
        made = original(cls, batch, model_runner, **kwargs)
        prompts = getattr(model_runner, "swaa_prompts", None)
        if prompts is not None and not made.forward_mode.is_decode_or_idle():
            prompts.note(made, batch.reqs)
        return made

    return init_new


def _verifying(original: Callable[..., Any]) -> Callable[..., Any]:
    def init_model_worker(self: Any) -> None:
        original(self)  # pools have their last size only after graphs were captured
        from swaa.integrations.sglang import report

        report.verify(self.tp_worker.model_runner)

    return init_model_worker


def _searching_beams(original: Callable[..., Any]) -> Callable[..., Any]:
    def validate_and_init(self: Any, req: Any, recv_req: Any) -> str | None:
        from sglang.srt.runtime_context import get_memory

        if get_memory().radix_cache_backend == CACHE:
            return (
                "swaa: beam search is not served, because beams share keys after the prompt; ask"
                " for n answers instead"
            )
        return original(self, req, recv_req)

    return validate_and_init


HOOKS: tuple[tuple[str, str, Callable[..., Any], tuple[str, ...]], ...] = (
    ("sglang.srt.managers.scheduler", "Scheduler.init_model_config", _reading, ()),
    ("sglang.srt.configs.model_config", "ModelConfig._derive_hybrid_model", _declaring, ()),
    (
        "sglang.srt.model_executor.pool_configurator",
        "create_memory_pool_configurator",
        _sizing,
        ("kvc",),
    ),
    (
        "sglang.srt.model_executor.forward_batch_info",
        "ForwardBatch.init_new",
        _noting,
        ("batch", "model_runner"),
    ),
    ("sglang.srt.managers.scheduler", "Scheduler.init_model_worker", _verifying, ()),
    (
        "sglang.srt.beam_search.coordinator",
        "BeamCoordinator.validate_and_init",
        _searching_beams,
        ("req", "recv_req"),
    ),
)
"""Module, function, wrapper and the arguments that the function must take."""
